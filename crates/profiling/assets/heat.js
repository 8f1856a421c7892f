// The heatmap: time goes up in a column and on to the next one; a column is a second of 50 cells unless the capture is long.

const HEAT_ROWS = 50, HEAT_STEPS = [1, 2, 5, 10, 30, 60, 300, 3600], AXIS = 20;

class Heat {
  constructor(canvas, model) {
    Object.assign(this, { canvas, model, theme: 'light', spans: [], matched: null, changed: () => {}, step: 1, values: null });
    this.side = model.sides[0];
    const last = this.side.rows.count ? this.side.rows.at[this.side.rows.count - 1] : 0;
    this.length = Math.max(this.side.ns / 1e6, last + 1, 1);
    this.pen = canvas.getContext('2d');
  }

  // The finest scale at which all columns fit.
  fit() {
    const room = this.canvas.parentElement.clientWidth;
    this.step = HEAT_STEPS.find(step => Math.ceil(this.length / 1000 / step) * 5 <= room) ?? HEAT_STEPS.at(-1);
  }

  get cell() { return this.step * 1000 / HEAT_ROWS; }

  // Adds the rows up into cells; `matches` has a 1 for each stack that the search finds.
  fill(options, matches) {
    const { rows } = this.side, type = this.model.types[options.type], column = rows.values[type.column];
    this.type = type;
    this.columns = Math.ceil(this.length / 1000 / this.step);
    this.values = new Float64Array(this.columns * HEAT_ROWS);
    this.matched = matches ? new Float64Array(this.values.length) : null;
    for (let row = 0; row < rows.count; row++) {
      if (column[row] <= 0 || (options.threads && !options.threads.has(rows.thread[row]))) continue;
      const cell = Math.floor(rows.at[row] / this.cell);
      this.values[cell] += column[row] * type.scale;
      if (matches && matches[rows.stack[row]]) this.matched[cell] += column[row] * type.scale;
    }
    this.most = this.values.reduce((most, value) => Math.max(most, value), 0);
    this.draw();
  }

  colour(part, hit) {
    const p = Math.pow(part, 0.75);
    if (this.theme === 'dark') return hit ? hsl([324, 55, 26 + 40 * p]) : part === 0 ? '#1f2228' : hsl([26 - 4 * p, 28 + 34 * p, 19 + 38 * p]);
    return hit ? hsl([326, 60, 84 - 38 * p]) : part === 0 ? '#f1f0ec' : hsl([40 - 22 * p, 66 + 4 * p, 90 - 38 * p]);
  }

  draw() {
    const { canvas, pen, columns } = this, room = canvas.parentElement.clientWidth;
    this.w = Math.max(4, Math.min(36, Math.floor(room / columns)));
    this.h = 5;
    const width = Math.max(columns * this.w, Math.min(room, 120)), height = HEAT_ROWS * this.h + AXIS, ratio = Math.min(devicePixelRatio || 1, 32000 / width);
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.width = width + 'px'; canvas.style.height = height + 'px';
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (let i = 0; i < this.values.length; i++) {
      const hit = this.matched && this.matched[i] > 0;
      pen.globalAlpha = this.matched && !hit ? 0.45 : 1;
      pen.fillStyle = this.colour((hit ? this.matched[i] : this.values[i]) / (this.most || 1), hit);
      pen.fillRect(...this.place(i), this.w - 1, this.h - 1);
    }
    pen.globalAlpha = 1;
    const style = getComputedStyle(document.documentElement);
    pen.fillStyle = style.getPropertyValue('--soft');
    pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
    pen.textBaseline = 'top';
    const every = [1, 2, 5, 10, 20, 30, 60].find(n => n * this.w >= 40) ?? 120;
    for (let column = 0; column < columns; column += every) {
      pen.fillRect(column * this.w, HEAT_ROWS * this.h, 1, 4);
      const text = column * this.step + ' s';
      if (column * this.w + pen.measureText(text).width + 3 <= width) pen.fillText(text, column * this.w + 3, HEAT_ROWS * this.h + 4);
    }
    this.spans.forEach((span, which) => {
      pen.strokeStyle = pen.fillStyle = which === 0 ? style.getPropertyValue('--accent') : style.getPropertyValue('--match');
      pen.lineWidth = 2;
      const [from, to] = this.cells(span);
      if (to <= from) return;
      // The corners of the shape that the span covers: it starts within one column and ends within another.
      const { w, h } = this, x = cell => Math.floor(cell / HEAT_ROWS) * w, top = 0, bottom = HEAT_ROWS * h, low = cell => bottom - (cell % HEAT_ROWS) * h;
      const first = x(from), last = x(to - 1), up = low(to - 1) - h;
      pen.beginPath();
      const corners = first === last ? [[first, low(from)], [first, up], [first + w, up], [first + w, low(from)]]
        : first + w === last && up >= low(from) ? null
        : [[first, low(from)], [first, top], [last, top], [last, up], [last + w, up], [last + w, bottom], [first + w, bottom], [first + w, low(from)]];
      // Parts of two columns that do not touch are two boxes.
      if (corners) corners.forEach(([x, y]) => pen.lineTo(Math.max(1, x - 0.5), Math.max(1, y - 0.5)));
      else { pen.rect(first - 0.5, top - 0.5, w, low(from) - top); pen.rect(last - 0.5, up - 0.5, w, bottom - up); }
      if (corners) pen.closePath();
      pen.globalAlpha = 0.16; pen.fill();
      pen.globalAlpha = 1; pen.stroke();
    });
  }

  place(cell) { return [Math.floor(cell / HEAT_ROWS) * this.w, (HEAT_ROWS - 1 - cell % HEAT_ROWS) * this.h]; }

  cells([from, to]) { return [Math.round(from / this.cell), Math.min(this.values.length, Math.round(to / this.cell))]; }

  // The cells [first, last] at a point: below the grid, a whole column.
  at(x, y) {
    const column = Math.max(0, Math.min(this.columns - 1, Math.floor(x / this.w)));
    if (y >= HEAT_ROWS * this.h) return [column * HEAT_ROWS, (column + 1) * HEAT_ROWS - 1];
    const cell = column * HEAT_ROWS + Math.max(0, Math.min(HEAT_ROWS - 1, HEAT_ROWS - 1 - Math.floor(y / this.h)));
    return [cell, cell];
  }

  // Selects the time between two points; `second` keeps the first span, to compare with.
  select(start, end, second) {
    const cells = [...start, ...end], span = [Math.min(...cells) * this.cell, (Math.max(...cells) + 1) * this.cell];
    this.spans = second && this.spans.length ? [this.spans[0], span] : [span];
    this.draw();
    this.changed();
  }

  clear(count) { this.spans.length = Math.min(this.spans.length, count); this.draw(); this.changed(); }

  // Rows of a span, by halving.
  slice([from, to]) {
    const { rows } = this.side;
    const first = time => { let low = 0, high = rows.count; while (low < high) { const mid = (low + high) >> 1; if (rows.at[mid] < time) low = mid + 1; else high = mid; } return low; };
    return { side: this.side, from: first(from), to: first(to) };
  }
}
