const PERIOD = 1001001, canvas = app.$('flame');
check('title', document.title, 'small <cpu>');
check('header', app.$('notes').innerText.replaceAll('\n\n', '\n').split('\n').slice(0, 3),
  ['cpu over 10.0 s, 100 samples, from 2026-09-21 14:13:20 UTC', 'perf events on each processor, because the process may use them', '7 samples lost by the kernel']);
check('all', total('all'), 100 * PERIOD);
check('a function', total('tcp_sendmsg'), 26 * PERIOD);
near('widths are shares', boxOf('tcp_sendmsg').w / canvas.clientWidth, 0.26);

// Zoom by a click, back by a crumb, a key and a click on what is above.
clickOn('serve');
near('zoomed to the full width', boxOf('serve').w, canvas.clientWidth);
near('children grow', boxOf('tcp_sendmsg').w / canvas.clientWidth, 26 / 60);
check('what is beside it is gone', boxOf('idle'), null);
check('crumbs', [...app.$('crumbs').querySelectorAll('button')].map(b => b.textContent), ['all', 'main', 'run', 'serve']);
app.$('crumbs').querySelector('button').click();
near('crumb back', boxOf('tcp_sendmsg').w / canvas.clientWidth, 0.26);
clickOn('serve');
key('Escape');
check('Esc leaves the zoom', app.flame.focus, 0);
clickOn('serve'); clickOn('main');
check('a click above', app.flame.label(app.flame.focus), 'main');
app.reset();

// Search: shares of stacks, one with three matching frames counted once.
key('/');
check('/ goes to the search', document.activeElement.id, 'search');
app.search('recurse|memcpy');
check('share', app.$('matched').textContent, '20.00 % matches');
app.search('^recurse$');
check('recursion counts once', app.$('matched').textContent, '10.00 % matches');
app.search('MAIN');
check('case does not matter', app.$('matched').textContent, '100.00 % matches');
app.search('memcpy');
clickOn('serve');
check('share of the zoom', app.$('matched').textContent, '20.00 % matches, 16.67 % here');
app.search('[');
check('a bad pattern says so', app.$('matched').textContent, 'not a regular expression');
key('Escape');
check('Esc ends the search', [app.$('search').value, app.flame.matches], ['', null]);
key('Escape');

// Inverted: leaves on top, their totals are self times, callers below.
toggle('inverted');
check('leaves', app.flame.graph.children[0].map(n => [app.flame.label(n), app.flame.graph.total[0][n] / PERIOD]),
  [['idle', 10], ['lock:segments', 10], ['lookup', 10], ['memchr', 24], ['memcpy', 20], ['tcp_sendmsg', 26]]);
const memcpy = app.flame.graph.children[0].find(n => app.flame.label(n) === 'memcpy');
check('callers', app.flame.graph.children[memcpy].map(n => [app.flame.label(n), app.flame.graph.total[0][n] / PERIOD]), [['copy', 10], ['recurse', 10]]);
check('self is the leaf', [memcpy, ...app.flame.graph.children[memcpy]].map(n => app.flame.graph.self[0][n] / PERIOD), [20, 0, 0]);
app.search('recurse');
check('the same share', app.$('matched').textContent, '10.00 % matches');
app.search('');
toggle('inverted');

// Threads.
toggle('by-thread');
check('threads first', app.flame.graph.children[0].map(n => [app.flame.label(n), app.flame.graph.total[0][n] / PERIOD]),
  [['koltso-core-0', 50], ['koltso-core-1', 30], ['koltso-core-2', 20]]);
toggle('by-thread');
document.querySelectorAll('#thread-list input')[0].click();
check('without a thread', [total('all'), total('tcp_sendmsg')], [50 * PERIOD, null]);
check('says so', document.querySelector('#threads summary').textContent, 'Threads: 2 of 3');
app.choose(new Set());
check('without any', [app.flame.graph.total[0][0], app.$('empty').hidden], [0, false]);
app.reset();

// Other values.
app.$('type').value = '0';
app.$('type').onchange();
check('samples', total('tcp_sendmsg'), 26);
app.$('type').value = '1';
app.$('type').onchange();

// The tooltip has self and total, here and anywhere.
const box = boxOf('serve');
pointer(canvas, 'pointermove', box.x + 5, box.y);
check('tooltip', [app.$('tip').hidden, app.$('tip').querySelector('strong').textContent], [false, 'serve  (program)']);
check('its rows', [...app.$('tip').querySelectorAll('tr')].map(tr => [...tr.cells].map(td => td.textContent.replaceAll('\u00a0', ' '))),
  [['total here', '60.1 ms', '60.00 %'], ['self here', '0 ns', '0.00 %'], ['total anywhere', '60.1 ms', '60.00 %'], ['self anywhere', '0 ns', '0.00 %']]);
check('recursion anywhere', app.flame.facts(boxOf('recurse').node)[2].map(s => s.replaceAll('\u00a0', ' ')), ['total anywhere', '10.0 ms', '10.00 %']);
const theme = app.flame.theme;
toggle('theme');
check('theme', app.flame.theme !== theme && document.documentElement.dataset.theme, theme === 'dark' ? 'light' : 'dark');
check('units', [amount(1536, 'bytes'), amount(1234567, 'count'), amount(-3.21e9, 'nanoseconds')].map(s => s.replaceAll('\u00a0', ' ')), ['1.50 KiB', '1 234 567', '-3.21 s']);
check('names are cut in front', [fitted('koltso_storage::log::Log::append', 14), fitted('memcpy', 4), fitted('a', 1)], ['…Log::append', 'mem…', '']);
report();
