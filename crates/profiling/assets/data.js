'use strict';
// From the page's data to graphs: decodes the tree and the rows (their form is described in page.rs), and adds rows up.

// Numbers of 5 bits a digit, low first; the sixth bit says that more follow.
function numbers(text) {
  const digit = new Uint8Array(128);
  [...'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'].forEach((c, i) => { digit[c.charCodeAt(0)] = i; });
  const out = [];
  let value = 0, factor = 1;
  for (let i = 0; i < text.length; i++) {
    const d = digit[text.charCodeAt(i)];
    value += (d & 31) * factor;
    if (d & 32) { factor *= 32; } else { out.push(value); value = 0; factor = 1; }
  }
  return out;
}

function decode(data) {
  const parent = [-1], frame = [-1], depth = [0];
  const tree = numbers(data.tree);
  for (let i = 0, last = 0; i < tree.length; i += 2) {
    let up = last;
    for (let n = tree[i]; n > 0; n--) up = parent[up];
    last = parent.length;
    parent.push(up); frame.push(tree[i + 1]); depth.push(depth[up] + 1);
  }
  let node = 0;
  const stacks = numbers(data.stacks).map(delta => (node += delta));
  // The last frame of each stack that is folded (thread start, executor); 0 if none is.
  const folded = numbers(data.folds).map((count, i) => {
    let node = stacks[i];
    for (let up = depth[node] - count; up > 0; up--) node = parent[node];
    return node;
  });
  const timed = data.kind === 'heat';
  const columns = 1 + Math.max(...data.types.map(type => type[3]));
  const sides = data.sides.map(side => {
    const flat = numbers(side.rows), width = (timed ? 3 : 2) + columns, count = flat.length / width;
    const rows = { at: new Float64Array(count), stack: new Uint32Array(count), thread: new Uint32Array(count), count,
      values: Array.from({ length: columns }, () => new Float64Array(count)) };
    let at = 0, stack = 0;
    for (let row = 0, i = 0; row < count; row++) {
      if (timed) { rows.at[row] = at += flat[i++]; stack = flat[i++]; } else { stack += flat[i++]; }
      rows.stack[row] = stack;
      rows.thread[row] = flat[i++];
      for (const column of rows.values) { const z = flat[i++]; column[row] = z % 2 ? -(z + 1) / 2 : z / 2; }
    }
    return { ...side, rows };
  });
  const types = data.types.map(([name, unit, scale, column]) => ({ name, unit, scale, column }));
  return { kind: data.kind, event: data.event, types, type: data.type, threads: data.threads, sides, parent, frame, depth, stacks, folded, caution: data.caution,
    // Names of frames, then of threads: what a graph's nodes are called.
    names: [...data.frames.map(name => name.slice(1)), ...data.threads],
    places: [...data.frames.map(name => name[0]), ...data.threads.map(() => 't')], frames: data.frames.length };
}

// Adds up one or two slices {side, from, to} of rows. A graph's node 0 is all; children come after parents, by name.
// options: {type, inverted, byThread, runtime: whether folded frames are shown, threads: null or a Set of indexes}. With two slices the first is the base.
function buildGraph(model, slices, options) {
  const type = model.types[options.type];
  const sums = new Map();
  slices.forEach(({ side, from, to }, which) => {
    const { rows } = side, column = rows.values[type.column];
    for (let row = from; row < to; row++) {
      if (column[row] <= 0 || (options.threads && !options.threads.has(rows.thread[row]))) continue;
      const key = (options.byThread ? rows.thread[row] * model.stacks.length : 0) + rows.stack[row];
      let sum = sums.get(key);
      if (!sum) sums.set(key, sum = [0, 0]);
      sum[which] += column[row] * type.scale;
    }
  });
  const graph = { name: [-1], parent: [-1], depth: [0], total: [[0], [0]], self: [[0], [0]], children: [[]], own: new Map(),
    sides: slices.length, type };
  // A table of (parent, name) with open addressing: a Map of numbers this large is several times slower.
  let table = new Int32Array(1 << 14);
  const slot = (parent, name) => {
    let at = (Math.imul(parent, 0x9e3779b1) ^ Math.imul(name + 1, 0x85ebca6b)) >>> 0;
    for (at = (at ^ (at >>> 15)) & (table.length - 1); ; at = (at + 1) & (table.length - 1)) {
      const node = table[at];
      if (node === 0 || (graph.parent[node] === parent && graph.name[node] === name)) return at;
    }
  };
  const child = (parent, name) => {
    const at = slot(parent, name);
    if (table[at]) return table[at];
    const node = table[at] = graph.name.length;
    graph.name.push(name); graph.parent.push(parent); graph.depth.push(graph.depth[parent] + 1); graph.children.push([]);
    graph.children[parent].push(node);
    graph.total[0].push(0); graph.total[1].push(0); graph.self[0].push(0); graph.self[1].push(0);
    if (node * 2 > table.length) {
      table = new Int32Array(table.length * 2);
      for (let old = 1; old <= node; old++) table[slot(graph.parent[old], graph.name[old])] = old;
    }
    return node;
  };
  const seen = new Int32Array(model.names.length).fill(-1);
  let stamp = 0;
  const path = [];
  for (const [key, sum] of sums) {
    const thread = Math.floor(key / model.stacks.length), stack = key % model.stacks.length;
    const end = options.runtime ? 0 : model.folded[stack];
    path.length = 0;
    for (let node = model.stacks[stack]; node > end; node = model.parent[node]) path.push(model.frame[node]);
    // What a function has anywhere, recursion counted once: self and total of each slice.
    stamp++;
    path.forEach((name, i) => {
      if (seen[name] === stamp) return;
      seen[name] = stamp;
      let own = graph.own.get(name);
      if (!own) graph.own.set(name, own = [0, 0, 0, 0]);
      for (const which of [0, 1]) { own[2 + which] += sum[which]; if (i === 0) own[which] += sum[which]; }
    });
    if (!options.inverted) path.reverse();
    if (options.byThread) path.unshift(model.frames + thread);
    let at = 0, own = 0;
    graph.total[0][0] += sum[0]; graph.total[1][0] += sum[1];
    for (let i = 0; i < path.length; i++) {
      at = child(at, path[i]);
      graph.total[0][at] += sum[0]; graph.total[1][at] += sum[1];
      // Self belongs to the leaf, which an inverted graph has on top.
      if (i === (options.byThread ? 1 : 0) || !options.inverted) own = at;
    }
    graph.self[0][own] += sum[0]; graph.self[1][own] += sum[1];
  }
  const order = model.order ??= (() => {
    const sorted = [...model.names.keys()].sort((a, b) => (model.names[a] < model.names[b] ? -1 : 1));
    const rank = new Uint32Array(sorted.length);
    sorted.forEach((name, i) => { rank[name] = i; });
    return rank;
  })();
  for (const nodes of graph.children) if (nodes.length > 1) nodes.sort((a, b) => order[graph.name[a]] - order[graph.name[b]]);
  return graph;
}

// The value of all stacks that have a matching frame, below a node: a stack counts once however many of its frames match.
function matchedTotal(graph, matches, side, from = 0) {
  for (let node = from; node > 0; node = graph.parent[node]) if (matches[graph.name[node]]) return graph.total[side][from];
  let sum = 0;
  const todo = [...graph.children[from]];
  while (todo.length) {
    const node = todo.pop();
    if (matches[graph.name[node]]) sum += graph.total[side][node]; else todo.push(...graph.children[node]);
  }
  return sum;
}

function amount(value, unit) {
  const scales = { nanoseconds: [[1e9, 's'], [1e6, 'ms'], [1e3, 'µs'], [1, 'ns']],
    bytes: [[2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [1024, 'KiB'], [1, 'B']] }[unit];
  if (!scales) return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, '\u00a0');
  const [scale, name] = scales.find(([scale]) => Math.abs(value) >= scale) ?? scales.at(-1);
  const scaled = value / scale;
  return scaled.toFixed(scale === 1 || Math.abs(scaled) >= 100 ? 0 : Math.abs(scaled) >= 10 ? 1 : 2) + '\u00a0' + name;
}

const percent = (part, whole) => (whole > 0 ? (part * 100 / whole).toFixed(2) : '0.00') + '\u00a0%';
