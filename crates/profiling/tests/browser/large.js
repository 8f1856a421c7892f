// The bounds are generous: they catch a page that got slow by an order of magnitude, on a busy machine.
const timed = (what, bound, run) => { const start = performance.now(); run(); const ms = performance.now() - start; times.push(`${what} ${ms.toFixed(0)}`); check(what, ms < bound || ms, true); };
const times = [];
check('all samples', total('all') / 1001001, 17000);
timed('rebuild', 1500, () => app.rebuild());
timed('draw', 300, () => app.flame.draw());
timed('zoom', 300, () => app.flame.zoom(app.flame.graph.children[app.flame.graph.children[0][0]][0]));
timed('search', 600, () => app.search('probe_1|tcp'));
timed('inverted', 3000, () => toggle('inverted'));
timed('threads', 3000, () => toggle('by-thread'));
const note = document.createElement('pre');
note.id = 'times';
note.textContent = times.join(' ms, ') + ' ms';
document.body.append(note);
report();
