// Runs in the page under test: collects what failed and leaves it in the document.
const failures = [];
let checks = 0;
const check = (what, actual, expected) => {
  checks++;
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (a !== b) failures.push(`${what}: ${a}, not ${b}`);
};
const near = (what, actual, expected) => check(what, Math.abs(actual - expected) < 1e-6 || actual, true);
const report = () => {
  const out = document.createElement('pre');
  out.id = 'results';
  out.textContent = failures.length ? failures.join('\n') : `passed ${checks}`;
  document.body.append(out);
};
addEventListener('error', event => { failures.push('error: ' + event.message); });
addEventListener('securitypolicyviolation', event => { failures.push('network: ' + event.blockedURI); });
// Real events at points of a canvas.
const pointer = (canvas, type, x, y, more = {}) => {
  const box = canvas.getBoundingClientRect(), at = { clientX: box.left + x, clientY: box.top + y, bubbles: true, pointerId: 1, button: 0, ...more };
  canvas.dispatchEvent(type === 'click' ? new MouseEvent(type, at) : new PointerEvent(type, at));
};
const key = name => document.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }));
// Where a node is drawn: the first that has this label.
const boxOf = label => {
  for (const [depth, boxes] of app.flame.boxes.entries()) {
    for (const box of boxes ?? []) if (app.flame.label(box.node) === label) return { ...box, y: (depth + 0.5) * app.flame.row };
  }
  return null;
};
const clickOn = label => { const box = boxOf(label); pointer(app.$('flame'), 'click', box.x + box.w / 2, box.y); };
const total = (label, side = 0) => { const box = boxOf(label); return box ? app.flame.graph.total[side][box.node] : null; };
const toggle = id => { app.$(id).click(); };
