// Joins data, controls, flame graph and heatmap. `app` is what the tests drive.

const app = (() => {
  const $ = id => document.getElementById(id);
  const model = decode(JSON.parse($('data').textContent));
  const options = { type: model.type, inverted: false, byThread: false, runtime: false, threads: null };
  const flame = new Flame($('flame'), model), heat = model.kind === 'heat' ? new Heat($('heat-canvas'), model) : null;
  let widths = 1;

  const all = side => ({ side, from: 0, to: side.rows.count });
  const slices = () => (heat ? (heat.spans.length ? heat.spans.map(span => heat.slice(span)) : [all(model.sides[0])]) : model.sides.map(all));

  function rebuild() {
    const graph = buildGraph(model, slices(), options);
    $('widths').hidden = graph.sides !== 2;
    flame.show(graph, graph.sides === 2 ? widths : 0);
    $('empty').hidden = graph.total[flame.side][0] > 0;
    legend();
    selection();
  }

  function refill() { if (heat) heat.fill(options, flame.matches && stackMatches()); }

  function stackMatches() {
    const below = new Uint32Array(model.parent.length);
    for (let node = 1; node < below.length; node++) below[node] = flame.matches[model.frame[node]] + below[model.parent[node]];
    return model.stacks.map((node, i) => (below[node] > (options.runtime ? 0 : below[model.folded[i]]) ? 1 : 0));
  }

  function search(text) {
    $('search').value = text;
    let pattern = null, bad = false;
    try { pattern = text ? new RegExp(text, 'i') : null; } catch { bad = true; }
    $('search').classList.toggle('bad', bad);
    flame.matches = pattern && Uint8Array.from(model.names, name => (pattern.test(name) ? 1 : 0));
    // What only folded frames match is shown.
    if (flame.matches && !options.runtime && !flame.graph.name.some(name => name >= 0 && flame.matches[name])
      && model.frame.some(name => name >= 0 && flame.matches[name])) unfold(true);
    flame.draw();
    refill();
    if (bad) $('matched').textContent = 'not a regular expression';
  }

  function unfold(shown) {
    options.runtime = $('runtime').checked = shown;
    rebuild();
  }

  function theme(name) {
    document.documentElement.dataset.theme = name;
    flame.theme = name;
    if (heat) { heat.theme = name; if (heat.values) heat.draw(); }
    flame.draw();
    legend();
  }

  function legend() {
    const entries = flame.graph && flame.graph.sides === 2
      ? [['more in new', flame.changeColour(0.6)], ['less', flame.changeColour(-0.6)], ['as before', flame.changeColour(0)]]
      : Object.keys(PLACES).filter(place => model.places.indexOf(place) >= 0 && (place !== 't' || options.byThread)).map(place => [PLACES[place], hsl(FILLS[flame.theme][place])]);
    $('legend').replaceChildren(...entries.map(([text, colour]) => {
      const mark = document.createElement('i'), entry = document.createElement('span');
      mark.style.background = colour;
      entry.append(mark, text);
      return entry;
    }));
  }

  function selection() {
    if (!heat) return;
    const seconds = ms => (ms / 1000).toFixed(2);
    const texts = heat.spans.map((span, i) => `${seconds(span[0])}–${seconds(span[1])} s (${amount(flame.graph.total[i][0], flame.graph.type.unit)})`);
    $('selection').textContent = texts.length === 2 ? `Base ${texts[0]}, new ${texts[1]}`
      : texts.length ? `Selected ${texts[0]}; Ctrl or “Compare with next” and another span: the difference` : 'Click or drag to select a span; below the cells, whole columns';
  }

  flame.changed = () => {
    const path = flame.path(), shown = path.length > 6 ? [...path.slice(0, 1), null, ...path.slice(-4)] : path;
    const crumb = (text, node) => { const b = document.createElement('button'); b.type = 'button'; b.textContent = text; b.title = text; b.onclick = () => flame.zoom(node); return b; };
    const parts = path.length ? [crumb('all', 0), ...shown.flatMap(step => ['›', step ? crumb(model.names[step.name], step.node) : '…'])] : [];
    $('crumbs').replaceChildren(...parts);
    let text = '';
    if (flame.matches) {
      text = (flame.share() * 100).toFixed(2) + ' % matches';
      if (flame.focus) text += `, ${(flame.share(flame.focus) * 100).toFixed(2)} % here`;
    }
    $('matched').textContent = text;
  };

  function tip(event, name, rows) {
    const box = $('tip'), title = document.createElement('strong'), table = document.createElement('table');
    title.textContent = name;
    for (const row of rows) {
      const line = table.insertRow();
      for (const text of row) line.insertCell().textContent = text;
    }
    box.replaceChildren(title, table);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect(), gap = 14;
    const left = event.clientX + gap + width > innerWidth - 8 ? event.clientX - gap - width : event.clientX + gap;
    const top = event.clientY + gap + height > innerHeight - 8 ? event.clientY - gap - height : event.clientY + gap;
    box.style.left = Math.max(8, Math.min(left, innerWidth - width - 8)) + 'px';
    box.style.top = Math.max(8, top) + 'px';
  }

  const untip = () => { $('tip').hidden = true; };
  const point = (event, canvas) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

  function tell(event, node) {
    const place = node > 0 ? PLACES[model.places[flame.graph.name[node]]] : '';
    tip(event, flame.label(node) + (place ? '  (' + place + ')' : ''), flame.facts(node));
  }

  $('flame').addEventListener('pointermove', event => {
    const node = flame.at(...point(event, $('flame')));
    if (node < 0) untip(); else tell(event, node);
  });
  $('flame').addEventListener('pointerleave', untip);
  $('flame').addEventListener('click', event => {
    const node = flame.at(...point(event, $('flame')));
    if (node < 0) return;
    flame.zoom(node);
    // A finger does not hover: it gets the tooltip with the zoom.
    if (event.pointerType === 'touch') tell(event, node);
  });

  if (heat) {
    const canvas = $('heat-canvas');
    let start = null;
    const second = event => event.ctrlKey || event.metaKey || $('compare').checked;
    canvas.addEventListener('pointerdown', event => {
      if (event.button !== 0) return;
      start = heat.at(...point(event, canvas));
      try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that a test made up */ }
    });
    canvas.addEventListener('pointermove', event => {
      const cells = heat.at(...point(event, canvas));
      if (start) {
        const both = [...start, ...cells], span = [Math.min(...both) * heat.cell, (Math.max(...both) + 1) * heat.cell];
        heat.spans = second(event) && heat.spans.length ? [heat.spans[0], span] : [span];
        heat.draw();
      }
      const [from, to] = cells, sum = array => { let sum = 0; for (let i = from; i <= to; i++) sum += array[i]; return sum; };
      const rows = [['in this time', amount(sum(heat.values), heat.type.unit)]];
      if (heat.matched) rows.push(['matches', amount(sum(heat.matched), heat.type.unit)]);
      tip(event, `${(from * heat.cell / 1000).toFixed(2)}–${((to + 1) * heat.cell / 1000).toFixed(2)} s`, rows);
    });
    canvas.addEventListener('pointerup', event => {
      if (!start) return;
      heat.select(start, heat.at(...point(event, canvas)), second(event));
      start = null;
    });
    canvas.addEventListener('pointercancel', () => { start = null; });
    canvas.addEventListener('contextmenu', event => { if (event.ctrlKey) event.preventDefault(); });
    canvas.addEventListener('pointerleave', untip);
    heat.changed = rebuild;
    $('heat').hidden = false;
    heat.fit();
    // All scales that make sense and a canvas can hold; those finer than what fits scroll.
    for (const step of HEAT_STEPS) {
      if (step < heat.step && heat.length / 1000 / step > 4000) continue;
      $('scale').add(new Option(`Column ${step} s, cell ${step * 20} ms`, step));
      if (step * 1000 >= heat.length) break;
    }
    $('scale').value = heat.step;
    $('scale').onchange = () => { heat.step = Number($('scale').value); refill(); };
  }

  let typing = 0;
  $('search').addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(() => search($('search').value), 120); });
  model.types.forEach((type, i) => $('type').add(new Option(`${type.name.replace('_', ' ')} (${type.unit})`, i)));
  $('type').value = options.type;
  $('type').hidden = model.types.length < 2;
  $('type').onchange = () => { options.type = Number($('type').value); refill(); rebuild(); };
  $('widths').onchange = () => { widths = Number($('widths').value); rebuild(); };
  $('inverted').onchange = () => { options.inverted = $('inverted').checked; rebuild(); };
  $('by-thread').onchange = () => { options.byThread = $('by-thread').checked; rebuild(); };
  $('runtime').onchange = () => { unfold($('runtime').checked); refill(); };
  $('fold').hidden = !model.folded.some(node => node > 0);
  $('theme').onclick = () => theme(flame.theme === 'dark' ? 'light' : 'dark');

  function reset() {
    for (const id of ['inverted', 'by-thread', 'runtime', 'compare']) $(id).checked = false;
    Object.assign(options, { inverted: false, byThread: false, runtime: false });
    flame.focus = 0;
    if (heat) heat.spans = [];
    choose(null);
    search('');
  }
  $('reset').onclick = reset;

  // Threads: null for all, or a set of indexes.
  function choose(threads) {
    options.threads = threads;
    document.querySelectorAll('#thread-list input').forEach((box, i) => { box.checked = !threads || threads.has(i); });
    $('threads').querySelector('summary').textContent = threads ? `Threads: ${threads.size} of ${model.threads.length}` : 'Threads: all';
    refill();
    rebuild();
  }
  const boxes = model.threads.map((name, i) => {
    const label = document.createElement('label'), box = document.createElement('input');
    box.type = 'checkbox';
    box.onchange = () => {
      const chosen = new Set([...document.querySelectorAll('#thread-list input')].flatMap((box, i) => (box.checked ? [i] : [])));
      choose(chosen.size === model.threads.length ? null : chosen);
    };
    label.append(box, name);
    return { label, name, i };
  });
  const both = document.createElement('div');
  both.className = 'all';
  for (const [text, chosen] of [['All', () => null], ['None', () => new Set()]]) {
    const button = document.createElement('button');
    button.type = 'button'; button.textContent = text; button.onclick = () => choose(chosen());
    both.append(button);
  }
  $('thread-list').append(both, ...boxes.map(({ label }) => label));
  $('threads').hidden = model.threads.length < 2;
  document.addEventListener('pointerdown', event => { if (!$('threads').contains(event.target)) $('threads').open = false; });

  document.addEventListener('keydown', event => {
    if (event.key === '/' && document.activeElement !== $('search') && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $('search').focus(); $('search').select(); }
    // One thing back at a time, the nearest first.
    if (event.key === 'Escape') {
      if (!$('tip').hidden) untip();
      if ($('threads').open) $('threads').open = false;
      else if (document.activeElement === $('search') || flame.matches) { $('search').blur(); search(''); }
      else if (flame.focus) flame.zoom(0);
      else if (heat && heat.spans.length) heat.clear(heat.spans.length - 1);
    }
  });

  model.sides.forEach((side, i) => {
    const [first, ...rest] = side.notes, line = document.createElement('p');
    if (model.kind === 'diff') { const which = document.createElement('b'); which.textContent = i === 0 ? 'Base: ' : 'New: '; line.append(which); }
    line.append(`${first}, from ${new Date(side.began).toISOString().replace('T', ' ').slice(0, 19)} UTC`);
    $('notes').append(line);
    for (const note of rest) {
      const p = document.createElement('p');
      p.textContent = note;
      if (/^\d+ (samples|times|stacks) /.test(note)) p.className = 'loss';
      $('notes').append(p);
    }
  });

  if (model.caution) {
    const p = document.createElement('p');
    p.textContent = model.caution;
    p.className = 'loss';
    $('notes').append(p);
  }

  theme(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  choose(null);
  let wide = innerWidth;
  addEventListener('resize', () => { if (innerWidth !== wide) { wide = innerWidth; flame.draw(); if (heat) heat.draw(); } });
  return { model, options, flame, heat, search, theme, choose, reset, rebuild, $ };
})();
