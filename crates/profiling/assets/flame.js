// The flame graph on a canvas, root on top. It draws what is wider than half a pixel and keeps the boxes for the pointer.

const FILLS = {
  light: { u: [31, 72, 71], i: [44, 74, 77], s: [135, 19, 76], k: [212, 52, 79], l: [276, 36, 82], t: [220, 8, 85], all: [220, 8, 88],
    match: [326, 68, 76], text: '#1f2126', dim: 0.42, same: [45, 8, 90] },
  dark: { u: [28, 44, 34], i: [42, 38, 32], s: [140, 13, 33], k: [212, 38, 37], l: [276, 24, 40], t: [220, 7, 31], all: [220, 7, 27],
    match: [324, 46, 42], text: '#f1f1f3', dim: 0.4, same: [220, 6, 25] },
};
const PLACES = { u: 'program', i: 'inlined', s: 'Rust library', k: 'kernel', l: 'label', t: 'thread' };
const FONT = '12px ui-monospace, "SF Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace';

class Flame {
  constructor(canvas, model) {
    Object.assign(this, { canvas, model, graph: null, focus: 0, side: 0, matches: null, boxes: [], theme: 'light', changed: () => {} });
    this.row = matchMedia('(pointer: coarse)').matches ? 24 : 19;
    this.pen = canvas.getContext('2d');
    this.hue = model.names.map(name => { let h = 7; for (let i = 0; i < name.length; i++) h = (h * 31 + name.charCodeAt(i)) | 0; return (h >>> 3) % 9 - 4; });
  }

  // Shows another graph and keeps the zoom where the same path exists.
  show(graph, side) {
    const path = this.graph ? this.path() : [];
    this.graph = graph;
    this.side = side;
    this.focus = 0;
    for (const name of path.map(node => node.name)) {
      const next = graph.children[this.focus].find(child => graph.name[child] === name && graph.total[side][child] > 0);
      if (next === undefined) break;
      this.focus = next;
    }
    if (graph.sides === 2) {
      this.most = 1e-9;
      for (let node = 1; node < graph.name.length; node++) this.most = Math.max(this.most, Math.abs(this.change(node)));
    }
    this.draw();
  }

  path() {
    const nodes = [];
    for (let node = this.focus; node > 0; node = this.graph.parent[node]) nodes.unshift({ node, name: this.graph.name[node] });
    return nodes;
  }

  zoom(node) { this.focus = node; this.draw(); }

  // Difference of the shares of the two totals.
  change(node) {
    const [base, now] = this.graph.total;
    return (now[0] ? now[node] / now[0] : 0) - (base[0] ? base[node] / base[0] : 0);
  }

  label(node) { return node === 0 ? 'all' : this.model.names[this.graph.name[node]]; }

  colour(node, matched) {
    const fills = FILLS[this.theme];
    if (matched) return hsl(fills.match);
    if (node === 0) return hsl(fills.all);
    if (this.graph.sides === 2) return this.changeColour(this.change(node) / this.most);
    const name = this.graph.name[node], [h, s, l] = fills[this.model.places[name]];
    return hsl([h + this.hue[name] * 0.8, s, l + this.hue[name] * 0.55]);
  }

  changeColour(part) {
    const fills = FILLS[this.theme], strength = Math.sqrt(Math.min(1, Math.abs(part)));
    if (strength < 0.02) return hsl(fills.same);
    const hue = part > 0 ? 8 : 214;
    return this.theme === 'dark' ? hsl([hue, 12 + 44 * strength, 25 + 17 * strength]) : hsl([hue, 25 + 50 * strength, 92 - 22 * strength]);
  }

  draw() {
    const { graph, canvas, pen, row } = this;
    if (!graph) return;
    const width = Math.max(50, canvas.parentElement.clientWidth), total = graph.total[this.side];
    this.boxes = [];
    const put = (depth, x, w, node, dim) => (this.boxes[depth] ??= []).push({ x, w, node, dim });
    for (let node = graph.parent[this.focus]; node >= 0; node = graph.parent[node]) put(graph.depth[node], 0, width, node, true);
    const perValue = total[this.focus] > 0 ? width / total[this.focus] : 0;
    const todo = total[this.focus] > 0 ? [[this.focus, 0]] : [];
    while (todo.length) {
      const [node, x] = todo.pop();
      put(graph.depth[node], x, total[node] * perValue, node, false);
      let next = x;
      for (const child of graph.children[node]) {
        const w = total[child] * perValue;
        if (w >= 0.5) todo.push([child, next]);
        next += w;
      }
    }
    const height = Math.max(1, this.boxes.length) * row, ratio = Math.min(devicePixelRatio || 1, 32000 / height);
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.height = height + 'px';
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = FONT;
    pen.textBaseline = 'middle';
    const letter = pen.measureText('mmmmmmmmmm').width / 10, fills = FILLS[this.theme];
    this.boxes.forEach((boxes, depth) => {
      boxes.sort((a, b) => a.x - b.x);
      for (const { x, w, node, dim } of boxes) {
        const matched = this.matches !== null && node > 0 && this.matches[graph.name[node]] === 1;
        pen.globalAlpha = (dim && !matched) || (this.matches && !matched) ? fills.dim : 1;
        pen.fillStyle = this.colour(node, matched);
        pen.fillRect(x, depth * row, Math.max(0.5, w - (w > 3 ? 1 : 0)), row - 1);
        pen.globalAlpha = this.matches && !matched ? 0.75 : 1;
        const text = w > 26 ? fitted(this.label(node), Math.floor((w - 9) / letter)) : '';
        if (text) { pen.fillStyle = fills.text; pen.fillText(text, x + 4, depth * row + row / 2); }
      }
    });
    pen.globalAlpha = 1;
    this.changed();
  }

  // The node at a point of the canvas, or -1.
  at(x, y) {
    const boxes = this.boxes[Math.floor(y / this.row)] ?? [];
    const box = boxes.find(box => x >= box.x && x < box.x + Math.max(box.w, 1));
    return box ? box.node : -1;
  }

  // Share of the matching stacks, of all and of what is zoomed to.
  share(from = 0) { return this.graph.total[this.side][from] ? matchedTotal(this.graph, this.matches, this.side, from) / this.graph.total[this.side][from] : 0; }

  // Rows of the tooltip: [what, value, share, …].
  facts(node) {
    const { graph } = this, unit = graph.type.unit, rows = [];
    const own = node > 0 ? graph.own.get(graph.name[node]) : undefined;
    const line = (what, [base, now]) => {
      if (graph.sides === 1) return [what, amount(base, unit), percent(base, graph.total[0][0])];
      const share = which => (graph.total[which][0] ? [base, now][which] / graph.total[which][0] : 0);
      const change = (share(1) - share(0)) * 100;
      return [what, amount(base, unit), percent(base, graph.total[0][0]), '→ ' + amount(now, unit), percent(now, graph.total[1][0]),
        (change > 0 ? '+' : '') + change.toFixed(2) + ' points'];
    };
    rows.push(line('total here', [graph.total[0][node], graph.total[1][node]]), line('self here', [graph.self[0][node], graph.self[1][node]]));
    if (own) rows.push(line('total anywhere', [own[2], own[3]]), line('self anywhere', [own[0], own[1]]));
    return rows;
  }
}

const hsl = ([h, s, l]) => `hsl(${h} ${s}% ${l}%)`;

// As much of a name as fits: paths lose their front first, as the end says more.
function fitted(name, letters) {
  if (letters < 3) return '';
  if (name.length <= letters) return name;
  let level = 0;
  const starts = [];
  for (let i = 0; i < name.length; i++) {
    if ('<([{'.includes(name[i])) level++;
    else if (')]}'.includes(name[i]) || (name[i] === '>' && name[i - 1] !== '-')) level--;
    else if (level === 0 && name[i] === ':' && name[i + 1] === ':') starts.push(i + 2);
  }
  for (const start of starts) if (name.length - start + 1 <= letters && start < name.length) return '…' + name.slice(start);
  const short = starts.length > 1 && !name.startsWith('<') ? name.slice(starts[starts.length - 2]) : name;
  return (short.length <= letters ? short : short.slice(0, letters - 1) + '…');
}
