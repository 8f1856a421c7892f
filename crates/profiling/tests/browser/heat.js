const PERIOD = 1001001, canvas = app.$('heat-canvas'), heat = app.heat;
check('a column a second', [heat.step, heat.cell, heat.columns], [1, 20, 10]);
check('cells', [...heat.values.slice(0, 11)].map(v => v / PERIOD), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
check('the whole is shown first', total('all'), 100 * PERIOD);
const middle = cell => { const [x, y] = heat.place(cell); return [x + heat.w / 2, y + heat.h / 2]; };
const drag = (from, to, more) => { pointer(canvas, 'pointerdown', ...from, more); pointer(canvas, 'pointermove', ...to, more); pointer(canvas, 'pointerup', ...to, more); };

// A click is one cell, a drag a span across columns, the axis whole columns.
drag(middle(0), middle(0));
check('a cell', [heat.spans, total('all')], [[[0, 20]], PERIOD]);
drag(middle(55), middle(104));
check('a span', [heat.spans, total('all')], [[[1100, 2100]], 10 * PERIOD]);
const axis = column => [(column + 0.5) * heat.w, HEAT_ROWS * heat.h + 5];
drag(axis(8), axis(9));
check('columns', [heat.spans, total('all'), total('compact')], [[[8000, 10000]], 20 * PERIOD, 10 * PERIOD]);
drag(axis(9), axis(8));
check('backwards', heat.spans, [[8000, 10000]]);

// A second one with Ctrl: what is new in it.
drag(axis(0), axis(1));
drag(axis(8), axis(9), { ctrlKey: true });
check('two spans', heat.spans, [[0, 2000], [8000, 10000]]);
const node = label => app.flame.graph.name.findIndex((n, i) => i > 0 && app.flame.label(i) === label);
near('more', app.flame.change(node('compact')), 0.5);
near('less', app.flame.change(node('parse')), -0.3);
check('widths of the new one', [total('compact', 1), boxOf('parse')], [10 * PERIOD, null]);
check('both are named', app.$('selection').textContent.replaceAll('\u00a0', ' '), 'Base 0.00–2.00 s (20.0 ms), new 8.00–10.00 s (20.0 ms)');
app.$('widths').value = '0';
app.$('widths').onchange();
check('widths of the base', [boxOf('compact'), total('parse')], [null, 6 * PERIOD]);
app.$('widths').value = '1';
app.$('widths').onchange();

// Esc takes back one at a time; the check box is Ctrl for fingers.
key('Escape');
check('one left', heat.spans, [[0, 2000]]);
toggle('compare');
drag(axis(8), axis(9));
check('compared', heat.spans.length, 2);
toggle('compare');
key('Escape'); key('Escape');
check('none left', [heat.spans, total('all')], [[], 100 * PERIOD]);

// Search marks cells.
app.search('compact');
check('cells that match', [...heat.matched].flatMap((v, i) => (v ? [i] : [])), [400, 401, 402, 403, 404, 450, 451, 452, 453, 454]);
check('share', app.$('matched').textContent, '10.00 % matches');
app.search('');
app.choose(new Set([2]));
check('threads in cells', [...heat.values.slice(0, 10)].map(v => v / PERIOD), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
app.reset();
app.$('scale').value = '2';
app.$('scale').onchange();
check('a coarser scale', [heat.cell, heat.columns, heat.values[0] / PERIOD], [40, 5, 2]);
report();
