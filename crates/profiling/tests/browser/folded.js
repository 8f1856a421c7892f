const last = app.flame.side, PERIOD = 1001001;
const roots = () => app.flame.graph.children[0].map(n => [app.flame.label(n), Math.round(app.flame.graph.total[last][n] / PERIOD)]);
const useful = [['koltso::front::serve', 30], ['orphan', 10], ['syscall', 10]], whole = [['orphan', 10], ['start_thread', 40]];
check('a click is offered', app.$('fold').hidden, false);
check('useful frames first', roots(), useful);
check('what the runtime does itself', [total('entry_SYSCALL_64', last) / PERIOD, boxOf('monoio::driver::park')], [10, null]);
toggle('runtime');
check('a click shows them', roots(), whole);
check('all of them', boxOf('monoio::task::raw::poll') !== null, true);
toggle('runtime');
check('and hides them', roots(), useful);

// Callers of a leaf end at the first useful frame, too.
toggle('inverted');
const put = app.flame.graph.children[0].find(n => app.flame.label(n) === 'koltso::store::put');
check('callers', app.flame.graph.children[put].map(n => [app.flame.label(n), app.flame.graph.children[n].length]), [['koltso::front::serve', 0]]);
toggle('inverted');

// A search finds what is shown; what only folded frames match is unfolded.
app.search('koltso');
check('a search for what is shown', [app.$('matched').textContent, app.$('runtime').checked], ['60.00 % matches', false]);
if (app.heat) check('cells that match', app.heat.matched.reduce((a, b) => a + b, 0) / PERIOD, 30);
app.search('no such function');
check('nothing', [app.$('matched').textContent, app.$('runtime').checked], ['0.00 % matches', false]);
app.search('block_on');
check('a search for what is folded', [app.$('matched').textContent, app.$('runtime').checked, roots()], ['80.00 % matches', true, whole]);
if (app.heat) check('cells that match', app.heat.matched.reduce((a, b) => a + b, 0) / PERIOD, 40);
app.reset();
check('reset folds again', [app.$('runtime').checked, roots()], [false, useful]);
toggle('by-thread');
check('below threads', app.flame.graph.children[app.flame.graph.children[0][0]].map(n => app.flame.label(n)), useful.map(([name]) => name));
report();
