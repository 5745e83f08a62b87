// The map. plotly.js draws the points and does pan and wheel zoom; hover, click, lasso, box, legend and toolbar
// are ours: plotly's own lasso tests every point on every mouse move and sends every selected point back.
//
// Streamlit calls the default function at every rerun with the same parent element, so the first call mounts
// and the later ones restyle. Python sends one byte array (see ui/scatter.py):
//   uint32 length of head | head (JSON) | uint8 colour code per point | uint8 state per point
import { address, drawTile, make } from "./common.js";

const EMPHASISED = 1, MARKED = 2, SELECTED = 4; // bits of a point's state
const REACH = 12;                 // pixels from the pointer within which a point is hit
const PAD = 0.05;                 // free space around the points, as a share of their extent
const OUTLINE_VERTICES = 150;
// Where Escape means something else.
const TYPING = "input:not([type=checkbox], [type=radio], [type=range]), textarea, [role=dialog], [role=listbox]";
const CONFIG = { displayModeBar: false, scrollZoom: true, doubleClick: false, showTips: false };

const ICONS = { // 24 x 24, strokes
  pan: "M12 3v18M3 12h18M12 3l-3 3M12 3l3 3M12 21l-3-3M12 21l3-3M3 12l3-3M3 12l3 3M21 12l-3-3M21 12l-3 3",
  lasso: "M12 4c5 0 9 2.5 9 5.800s-4 6-9 6-9-2.600-9-6S7 4 12 4zM6.500 14.500c-2 1-2 4 .6 4 2 0 2.200 1 1.400 2.500",
  box: "M4 8V4h4M16 4h4v4M20 16v4h-4M8 20H4v-4M11 4h2M11 20h2M4 11v2M20 11v2",
  in: "M12 5v14M5 12h14",
  out: "M5 12h14",
  home: "M4 11.500L12 5l8 6.500M6.500 10v9h11v-9",
  clear: "M6 6l12 12M18 6L6 18",
};

const maps = new WeakMap(); // parent element → PointMap
const all = new Set();      // those on the page, to find the others of a group
const groups = new Map();   // name of a group → {version, view, tool}: kept when its maps leave the page

export default function ({ parentElement, data, setStateValue, setTriggerValue }) {
  let map = maps.get(parentElement);
  if (!map) maps.set(parentElement, (map = new PointMap(parentElement)));
  map.report = { outline: (v) => setStateValue("outline", v), clicked: (v) => setTriggerValue("clicked", v) };
  map.show(unpack(data));
  // Streamlit also runs the clean-up of a call that a newer rerun overtook; the map of the newer one must live.
  return () => setTimeout(() => {
    if (parentElement.isConnected) return;
    maps.delete(parentElement);
    map.destroy();
  });
}

function unpack(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const body = bytes.subarray(4 + length);
  return { ...head, code: body.subarray(0, head.count), state: body.subarray(head.count, 2 * head.count) };
}

class PointMap {
  constructor(parent) {
    this.tool = "pan";
    this.outline = null; // {id, points: [[x, y], ...]} in data coordinates, or {id, within} if drawn on a linked map
    this.made = 0;       // when the selection last changed here
    this.quiet = 0;      // above 0: camera moves are not passed on to the group
    all.add(this);
    this.abort = new AbortController();
    this.build(parent);
    this.listen();
  }

  // ---------------------------------------------------------------- data in

  /** Draw what Python sent. Runs one at a time; of several waiting, only the newest counts. */
  async show(data) {
    this.waiting = data;
    if (this.working) return;
    this.working = true;
    try {
      while (this.waiting && !this.gone) {
        const next = this.waiting;
        this.waiting = null;
        await this.draw(next);
      }
    } catch (error) {
      console.error(error);
      this.say(`The map cannot be drawn: ${error.message}`);
    } finally {
      this.working = false;
    }
  }

  async draw(data) {
    this.root.style.height = `${data.height}px`;
    if (!this.plotly && !hasWebGL()) throw new Error("this browser offers no WebGL. The galleries and lists still work.");
    if (data.points !== this.pointsPath) {
      this.points = await fetchPoints(data);
      this.pointsPath = data.points;
    }
    const hazed = await this.fetchHaze(data.haze);
    if (!this.plotly) {
      this.hazed = hazed;
      await this.preview(data);
      this.plotly = await loadPlotly(address(data.plotly));
    }
    if (data.hover !== this.data?.hover) this.fetchHover(data.hover);
    if (this.gone) return;
    const first = !this.painted;
    const moved = data.version !== this.data?.version; // other positions: new camera, no selection
    Object.assign(this, { data, hazed });
    if (moved || (data.link && data.heard >= this.made)) this.outline = selected(data);
    this.legend();
    if (first) {
      await this.mount();
    } else {
      await this.paint();
      if (moved) await this.quietly(() => this.goHome());
    }
    this.project();
    this.root.dataset.paint = data.paint; // drawn: for tests and timings
    this.root.dataset.runs = Number(this.root.dataset.runs ?? 0) + 1;
  }

  /** The density picture of the samples that are no points: {image, bounds}, or null. */
  async fetchHaze(haze) {
    if (!haze) return null;
    if (haze.path === this.hazed?.path) return { ...haze, image: this.hazed.image };
    const image = new Image();
    image.src = address(haze.path);
    await image.decode();
    return { ...haze, image };
  }

  async fetchHover(path) {
    this.texts = null;
    if (!path) return;
    const wanted = (this.hoverPath = path);
    const response = await fetch(address(path));
    const bytes = await response.arrayBuffer(); // decoded here: the server names no character set
    if (response.ok && this.hoverPath === wanted) this.texts = new TextDecoder().decode(bytes).split("\0");
  }

  // ---------------------------------------------------------------- drawing

  /** The same picture on a plain canvas: plotly.js takes the browser a second or two to start. */
  async preview(data) {
    const as = Object.assign(Object.create(this), { data, outline: selected(data) }); // not shown yet: this.data stays
    const { width, height } = this.size();
    const { x: [x0, x1], y: [y0, y1] } = as.fit(width, height);
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.still, { width: width * ratio, height: height * ratio });
    const pen = this.still.getContext("2d");
    pen.scale(ratio, ratio);
    as.shade({ x: [x0, x1], y: [y0, y1] }, width, height);
    for (const { x, y, marker: { color, size, opacity, line } } of as.traces()) {
      pen.globalAlpha = opacity;
      pen.strokeStyle = line?.color ?? "transparent";
      pen.lineWidth = line?.width ?? 1;
      x.forEach((value, i) => {
        pen.fillStyle = Array.isArray(color) ? color[i] : color;
        pen.beginPath();
        pen.arc(((value - x0) / (x1 - x0)) * width, ((y1 - y[i]) / (y1 - y0)) * height, size / 2, 0, 7);
        pen.fill();
        if (line) pen.stroke();
      });
    }
    as.legend();
    this.message.hidden = true;
    this.root.dataset.seen = data.paint;
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  }

  /** Draw the density picture where the camera shows it; outside of an outline it is grey. */
  shade({ x, y }, width, height) {
    const ratio = window.devicePixelRatio || 1, { canvas } = this.haze;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    }
    this.haze.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.haze.clearRect(0, 0, width, height);
    if (!this.hazed) return;
    const { lit, grey } = this.tinted();
    const across = (v) => ((v - x[0]) / (x[1] - x[0])) * width, down = (v) => ((y[1] - v) / (y[1] - y[0])) * height;
    const [left, low, right, high] = this.hazed.bounds;
    const place = [across(left), down(high), across(right) - across(left), down(low) - down(high)];
    const outline = this.outline?.points;
    this.haze.drawImage(outline ? grey : lit, ...place);
    if (!outline) return;
    this.haze.save();
    this.haze.beginPath();
    outline.forEach((p) => this.haze.lineTo(across(p[0]), down(p[1])));
    this.haze.clip("evenodd");
    this.haze.clearRect(0, 0, width, height);
    this.haze.drawImage(lit, ...place);
    this.haze.restore();
  }

  /** The density picture in its colours (what has none: in the grey of the page), and all of it in that grey. */
  tinted() {
    const { image, path } = this.hazed, { faint } = this.theme();
    if (this.tint?.path === path && this.tint.faint === faint) return this.tint;
    const [width, height] = [image.naturalWidth, image.naturalHeight / 2];
    const part = (top, tinted) => {
      const canvas = make("canvas", { width, height }), pen = canvas.getContext("2d");
      pen.drawImage(image, 0, top, width, height, 0, 0, width, height);
      pen.globalCompositeOperation = "source-in";
      pen.fillStyle = faint;
      if (tinted) pen.fillRect(0, 0, width, height);
      return canvas;
    };
    const sum = (colours) => { // the two parts of a cell share its opacity
      const canvas = part(height, true), pen = canvas.getContext("2d");
      pen.globalCompositeOperation = "lighter";
      pen.drawImage(part(0, !colours), 0, 0);
      return canvas;
    };
    return (this.tint = { path, faint, lit: sum(true), grey: sum(false) });
  }

  async mount() {
    const { width, height } = this.size();
    this.home = this.fit(width, height);
    const axis = { visible: false, autorange: false, zeroline: false, showgrid: false };
    const layout = {
      width, height, margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, hovermode: false, dragmode: "pan",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: 1,
      xaxis: { ...axis, range: this.home.x }, yaxis: { ...axis, range: this.home.y },
    };
    await this.plotly.newPlot(this.plot, this.traces(), layout, CONFIG);
    this.painted = this.recipe();
    this.message.hidden = true;
    this.still.remove();
    for (const event of ["plotly_relayouting", "plotly_relayout"]) this.plot.on(event, () => this.moved());
    this.plot.on("plotly_webglcontextlost", () => this.say("The graphics context was lost. Reload the page."));
    this.resizing = new ResizeObserver(() => {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.resize());
    });
    this.resizing.observe(this.stage);
    const { view, tool } = this.share({});
    if (view) this.follow(view);
    if (tool) this.hold(tool);
  }

  /** Everything the look of the points depends on. */
  recipe() {
    const { text, back } = this.theme();
    return [this.data.version, this.data.points, this.data.paint, this.outline?.id, text, back, this.pointSize()].join();
  }

  /** Diameter in pixels: smaller for many samples, drawn or only in the density picture, and on a small map. */
  pointSize() {
    const { width, height } = this.size();
    const room = Math.min(1.1, Math.max(0.7, Math.sqrt(Math.min(width, height) / 520)));
    const size = 10.5 - 1.45 * Math.log10(Math.max(this.data.total, 10));
    return Math.round(10 * room * Math.min(8, Math.max(2.6, size))) / 10;
  }

  async paint() {
    this.shadeHere();
    if (this.recipe() === this.painted) return;
    this.painted = this.recipe();
    const update = {};
    this.traces().forEach((trace, at) => {
      const { x, y, marker } = trace;
      const { color, size, opacity, line } = marker;
      const parts = { x, y, "marker.color": color, "marker.size": size, "marker.opacity": opacity,
        "marker.line.color": line?.color };
      for (const [name, value] of Object.entries(parts)) (update[name] ??= [])[at] = value ?? null;
    });
    await this.plotly.restyle(this.plot, update, [0, 1, 2]);
  }

  /** Three layers, from below: grey, coloured, coloured and outlined. */
  traces() {
    const { x, y } = this.points;
    const { code, state, scale, count } = this.data;
    const { ring, faint } = this.theme();
    const within = this.outline && (this.outline.within ?? insideOutline(this.points, this.outline.points));
    const layers = [[], [], []];
    for (const i of scale.names.length ? range(count) : byCode(code)) {
      const lit = state[i] & EMPHASISED && (!within || within[i]);
      layers[!lit ? 0 : state[i] & MARKED ? 2 : 1].push(i);
    }
    const size = this.pointSize();
    const colours = colourTable(scale); // names, not numbers on a colorscale: plotly is twice as fast with them
    const look = [
      { color: faint, size: size * 0.8, opacity: 0.55 },
      { size, opacity: 0.85 },
      { size: size * 1.25, opacity: 1, line: { width: 0.8, color: ring } },
    ];
    return layers.map((chosen, at) => {
      const pick = (values) => (chosen.length ? Float32Array.from(chosen, (i) => values[i]) : [NaN]);
      const marker = { ...look[at] };
      if (at) marker.color = chosen.length ? chosen.map((i) => colours[code[i]]) : [faint];
      return { type: "scattergl", mode: "markers", hoverinfo: "skip", x: pick(x), y: pick(y), marker };
    });
  }

  theme() {
    const style = getComputedStyle(this.root);
    const text = style.getPropertyValue("--st-text-color").trim() || "#31333f";
    const back = style.getPropertyValue("--st-background-color").trim() || "#ffffff";
    const [low, high] = [readColour(back), readColour(text)];
    return { text, back, faint: between(low, high, 0.3), ring: between(low, high, 0.7) };
  }

  legend() {
    const { names, palette, title, low, high } = this.data.scale;
    const drawn = JSON.stringify([this.data.scale, this.data.flag]);
    if (drawn === this.legendDrawn) return;
    this.legendDrawn = drawn;
    const parts = [];
    if (title) parts.push(make("span", { class: "chf-legend-title", text: title }));
    if (names.length) {
      names.forEach((name, code) => {
        const swatch = make("span", { class: "chf-swatch" });
        swatch.style.background = palette[code % palette.length];
        parts.push(make("span", { class: "chf-entry" }, swatch, make("span", { text: name })));
      });
    } else {
      const bar = make("span", { class: "chf-bar" });
      bar.style.background = `linear-gradient(to right, ${palette.join(", ")})`;
      parts.push(make("span", { class: "chf-entry" },
        make("span", { text: short(low, high - low) }), bar, make("span", { text: short(high, high - low) })));
    }
    if (this.data.flag) {
      parts.push(make("span", { class: "chf-entry" },
        make("span", { class: "chf-swatch chf-ring" }), make("span", { text: "flagged" })));
    }
    this.key.replaceChildren(...parts);
  }

  shadeHere() {
    const { width, height } = this.plot._fullLayout;
    this.shade(this.view(), width, height);
  }

  /** Put the density picture, the outline and the focus ring where the camera now shows them. */
  project() {
    if (!this.data || !this.view()) return;
    this.shadeHere();
    const points = this.drawing ?? this.outline?.points?.map((p) => this.toPixel(p));
    this.shape.setAttribute("d", points?.length ? `M${points.map((p) => p.map(Math.round)).join("L")}Z` : "");
    this.buttons.clear.disabled = !this.outline;
    const ring = this.data.focus;
    this.ring.style.display = ring ? "" : "none";
    if (ring) this.ring.setAttribute("transform", `translate(${this.toPixel(ring).map(Math.round)})`);
    this.card.hidden = true;
    this.hovered = -1;
  }

  say(words) {
    if (this.gone) return;
    this.message.textContent = words;
    this.message.hidden = false;
  }

  // ---------------------------------------------------------------- camera

  size() {
    return { width: Math.max(this.stage.clientWidth, 50), height: Math.max(this.stage.clientHeight, 50) };
  }

  /** Ranges that show all points, one unit as long in x as in y. */
  fit(width, height) {
    const [x0, y0, x1, y1] = this.data.bounds;
    const [w, h] = [x1 - x0 || 1, y1 - y0 || 1];
    const unit = Math.max(w / width, h / height) * (1 + 2 * PAD);
    return around([(x0 + x1) / 2, (y0 + y1) / 2], unit, width, height);
  }

  view() {
    const full = this.plot._fullLayout;
    return full?.xaxis && { x: full.xaxis.range.map(Number), y: full.yaxis.range.map(Number) };
  }

  unit() {
    const { x } = this.view();
    return (x[1] - x[0]) / this.plot._fullLayout.width;
  }

  toPixel([x, y]) {
    const view = this.view(), { width, height } = this.plot._fullLayout;
    return [((x - view.x[0]) / (view.x[1] - view.x[0])) * width,
      ((view.y[1] - y) / (view.y[1] - view.y[0])) * height];
  }

  toData([px, py]) {
    const view = this.view(), unit = this.unit();
    return [view.x[0] + px * unit, view.y[1] - py * unit];
  }

  look({ x, y }, extra = {}) {
    return this.plotly.relayout(this.plot, { "xaxis.range": x, "yaxis.range": y, ...extra });
  }

  goHome() {
    const { width, height } = this.size();
    this.home = this.fit(width, height);
    return this.look(this.home);
  }

  zoom(factor, [dx, dy] = [0, 0]) {
    const { x, y } = this.view(), { width, height } = this.size();
    const unit = this.unit() * factor;
    const centre = [(x[0] + x[1]) / 2 + dx * this.unit(), (y[0] + y[1]) / 2 + dy * this.unit()];
    return this.look(around(centre, unit, width, height));
  }

  async resize() {
    if (this.gone || !this.view()) return;
    const { width, height } = this.size(), { x, y } = this.view();
    const full = this.plot._fullLayout;
    if (width === full.width && height === full.height) return;
    const atHome = Math.abs(x[0] - this.home.x[0]) + Math.abs(y[0] - this.home.y[0]) < this.unit();
    this.home = this.fit(width, height);
    const same = around([(x[0] + x[1]) / 2, (y[0] + y[1]) / 2], this.unit(), width, height);
    await this.quietly(() => this.look(atHome ? this.home : same, { width, height }));
    await this.paint();
  }

  // ---------------------------------------------------------------- group

  /** The other maps of the group that show the same positions. */
  peers() {
    const { group, version } = this.data ?? {};
    return group ? [...all].filter((map) => map !== this && map.data?.group === group && map.data.version === version) : [];
  }

  /** The maps that show the same samples at other places: they share the tool and the selected samples. */
  linked() {
    const { link, count } = this.data ?? {};
    return link ? [...all].filter((map) => map !== this && map.data?.link === link && map.data.count === count) : [];
  }

  /** What the group shares; ``change`` is put into it. Other positions: it begins anew. */
  share(change) {
    const { group, version } = this.data ?? {};
    if (!group) return {};
    const before = groups.get(group);
    const now = { ...(before?.version === version ? before : { version }), ...change };
    groups.set(group, now);
    return now;
  }

  /** The camera moved: so do the others'. */
  moved() {
    this.project();
    if (this.quiet) return;
    this.share({ view: this.view() });
    for (const map of this.peers()) map.follow(this.view());
  }

  /** Take the camera of another map of the group, at most once a frame. */
  follow(view) {
    const asked = Boolean(this.wanted);
    this.wanted = view;
    if (!asked) requestAnimationFrame(() => this.quietly(async () => {
      const { x, y } = this.wanted, { width, height } = this.size();
      this.wanted = null;
      if (this.gone || !this.view()) return;
      await this.look(around([(x[0] + x[1]) / 2, (y[0] + y[1]) / 2], (x[1] - x[0]) / width, width, height));
    }));
  }

  async quietly(act) {
    this.quiet++;
    try {
      await act();
    } finally {
      this.quiet--;
    }
  }

  // ---------------------------------------------------------------- what the user does

  build(parent) {
    const svg = (tag, attributes, ...children) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      node.append(...children);
      return node;
    };
    const button = (name, label, press) => {
      const icon = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
      const node = make("button", { type: "button", class: "chf-button", title: label, "aria-label": label }, icon);
      node.addEventListener("click", press);
      return node;
    };
    this.buttons = {
      pan: button("pan", "Move the map; click a point to open it", () => this.use("pan")),
      lasso: button("lasso", "Select with a lasso", () => this.use("lasso")),
      box: button("box", "Select with a box", () => this.use("box")),
      in: button("in", "Zoom in", () => this.data && this.zoom(0.6)),
      out: button("out", "Zoom out", () => this.data && this.zoom(1 / 0.6)),
      home: button("home", "Show all points", () => this.data && this.goHome()),
      clear: button("clear", "Clear the selection (Escape)", () => this.select(null)),
    };
    const { pan, lasso, box, clear, ...camera } = this.buttons;
    const group = (...nodes) => make("div", { class: "chf-group" }, ...nodes);
    this.toolbar = make("div", { class: "chf-toolbar", role: "toolbar", "aria-label": "Map tools" },
      group(pan, lasso, box, clear), group(...Object.values(camera)));
    this.still = make("canvas", { class: "chf-still" });
    this.haze = make("canvas", { class: "chf-haze", width: 1, height: 1 }).getContext("2d");
    this.plot = make("div", { class: "chf-plot" });
    this.shape = svg("path", { class: "chf-outline" });
    this.ring = svg("g", { class: "chf-focus" });
    for (const layer of ["chf-halo", "chf-line"]) {
      this.ring.append(svg("circle", { r: 11, class: layer }),
        svg("path", { d: "M0-20V-7M0 20V7M-20 0H-7M20 0H7", class: layer }));
    }
    this.ring.style.display = "none";
    this.overlay = svg("svg", { class: "chf-overlay", "aria-hidden": "true" }, this.shape, this.ring);
    this.sheet = make("div", { class: "chf-sheet" }); // over the plot while a selection tool is in hand
    this.message = make("div", { class: "chf-message", role: "status", text: "Loading the map …" });
    this.card = make("div", { class: "chf-card", role: "tooltip" });
    this.picture = make("canvas", { width: 1, height: 1 });
    this.words = make("div", { class: "chf-words" });
    this.card.append(this.picture, this.words);
    this.card.hidden = true;
    this.stage = make("div", {
      class: "chf-stage", tabindex: "0", role: "group",
      "aria-label": "Map of the samples. Arrow keys move it, plus and minus zoom, zero shows all.",
    }, this.haze.canvas, this.still, this.plot, this.overlay, this.sheet, this.message, this.toolbar);
    this.key = make("div", { class: "chf-legend" });
    this.root = make("div", { class: "chf-map" }, this.stage, this.key, this.card);
    parent.append(this.root);
    this.use("pan");
  }

  use(tool) {
    this.share({ tool });
    for (const map of [this, ...this.peers(), ...this.linked()]) map.hold(tool);
  }

  hold(tool) {
    this.tool = tool;
    this.sheet.hidden = tool === "pan";
    for (const name of ["pan", "lasso", "box"]) {
      this.buttons[name].setAttribute("aria-pressed", String(name === tool));
    }
    this.buttons.clear.disabled = !this.outline;
  }

  listen() {
    const { signal } = this.abort;
    const on = (target, type, handler, options = {}) => target.addEventListener(type, handler, { signal, ...options });
    on(this.stage, "pointermove", (event) => this.hover(event));
    on(this.stage, "pointerleave", () => this.hover(null));
    on(this.stage, "pointerdown", (event) => this.press(event), { capture: true });
    on(this.sheet, "pointerdown", (event) => this.startOutline(event));
    on(this.sheet, "wheel", (event) => { // hand it on to plotly, which zooms
      event.preventDefault();
      this.plot.querySelector(".nsewdrag")?.dispatchEvent(new WheelEvent("wheel", event));
    }, { passive: false });
    on(this.stage, "keydown", (event) => this.keyDown(event));
    on(document, "keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || event.target.closest(TYPING)) return;
      this.cancelOutline?.();
      if (this.outline) this.select(null);
    });
  }

  keyDown(event) {
    if (!this.data || event.target !== this.stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowLeft: [1, [-60, 0]], ArrowRight: [1, [60, 0]], ArrowUp: [1, [0, 60]], ArrowDown: [1, [0, -60]],
      "+": [0.6], "=": [0.6], "-": [1 / 0.6],
    };
    if (event.key === "0") this.goHome();
    else if (event.key in keys) this.zoom(...keys[event.key]);
    else return;
    event.preventDefault();
  }

  /** Pointer position in pixels of the stage. */
  at(event) {
    const frame = this.stage.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  /** A press that does not travel is a click on the nearest point. (Plotly covers the page while it drags.) */
  press(event) {
    this.hover(null);
    if (this.tool !== "pan" || event.button || !this.data || this.toolbar.contains(event.target)) return;
    const { clientX, clientY } = event, hit = this.nearest(this.at(event));
    const release = (up) => {
      if (up.type === "pointercancel" || Math.hypot(up.clientX - clientX, up.clientY - clientY) > 4) return;
      if (hit >= 0) this.report.clicked(this.points.index ? this.points.index[hit] : hit);
    };
    const once = new AbortController();
    const signal = AbortSignal.any([once.signal, this.abort.signal]);
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, (up) => { once.abort(); release(up); }, { signal, capture: true });
    }
  }

  startOutline(event) {
    if (event.button || !this.data) return;
    event.preventDefault();
    const start = this.at(event), path = [start], once = new AbortController();
    this.sheet.setPointerCapture(event.pointerId);
    const end = () => {
      once.abort();
      this.drawing = this.cancelOutline = null;
      this.project();
    };
    this.cancelOutline = end;
    const on = (type, handler) => this.sheet.addEventListener(type, handler, { signal: once.signal });
    on("pointermove", (move) => {
      const here = this.at(move), last = path.at(-1);
      if (this.tool === "box") this.drawing = [start, [here[0], start[1]], here, [start[0], here[1]]];
      else if (Math.hypot(here[0] - last[0], here[1] - last[1]) >= 3) this.drawing = [...path, here], path.push(here);
      this.project();
    });
    on("pointercancel", end);
    on("pointerup", () => {
      const drawn = this.drawing;
      end();
      if (!drawn || drawn.length < 3) return;
      const [width, height] = [0, 1].map((k) => Math.max(...drawn.map((p) => p[k])) - Math.min(...drawn.map((p) => p[k])));
      if (Math.max(width, height) < 6) return;
      const step = Math.ceil(drawn.length / OUTLINE_VERTICES);
      this.select(drawn.filter((_, k) => k % step === 0).map((p) => this.toData(p)));
    });
  }

  /** Take an outline in data coordinates (null: none), grey what is outside, tell Python. */
  select(points) {
    const made = Date.now(), id = `${made}-${Math.random().toString(36).slice(2)}`;
    this.report.outline({ id, made, points: points ?? [] });
    for (const map of [this, ...this.peers()]) map.take(points && { id, points }, made);
    const within = points && insideOutline(this.points, points);
    for (const map of this.linked()) map.take(points && { id, within }, made);
  }

  take(outline, made) {
    Object.assign(this, { outline, made });
    this.project();
    requestAnimationFrame(() => this.painted && !this.gone && this.paint());
  }

  hover(event) {
    const idle = event && this.data && !event.buttons && event.pointerType !== "touch" && !this.toolbar.contains(event.target);
    const hit = idle ? this.nearest(this.at(event)) : -1;
    this.stage.classList.toggle("chf-over", hit >= 0);
    if (hit < 0) {
      this.card.hidden = true;
      this.hovered = -1;
      return;
    }
    if (hit !== this.hovered) this.fillCard(hit);
    const room = this.root.getBoundingClientRect(), card = this.card.getBoundingClientRect();
    const [x, y] = [event.clientX - room.left, event.clientY - room.top];
    const left = x + 16 + card.width <= room.width ? x + 16 : x - 16 - card.width;
    const top = y + 16 + card.height <= room.height ? y + 16 : y - 16 - card.height;
    this.card.style.transform = `translate(${Math.round(Math.max(0, left))}px, ${Math.round(Math.max(0, top))}px)`;
  }

  fillCard(hit) {
    this.hovered = hit;
    const { sheets } = this.data;
    const lines = (this.texts?.[hit] ?? "").split("\n").filter(Boolean);
    this.words.replaceChildren(...lines.map((line) => make("div", { text: line })));
    this.picture.hidden = !sheets;
    if (sheets) {
      this.picture.width = this.picture.height = 1; // wipes the last picture
      const index = this.points.index ? this.points.index[hit] : hit;
      drawTile(this.picture, sheets, index, 112, () => this.hovered === hit);
    }
    this.card.hidden = !sheets && !lines.length;
  }

  /** Nearest point within reach of a pixel, the coloured ones (which lie above) first; -1: none. */
  nearest(pixel) {
    const [x, y] = this.toData(pixel), unit = this.unit(), { points } = this;
    const { state } = this.data;
    let best = -1, least = Infinity;
    const reach = REACH * unit;
    points.grid.visit(x, y, reach, (i) => {
      const far = Math.hypot(points.x[i] - x, points.y[i] - y);
      const rank = far + (state[i] & EMPHASISED ? 0 : 2 * reach);
      if (far <= reach && rank < least) [best, least] = [i, rank];
    });
    return best;
  }

  destroy() {
    this.gone = true;
    all.delete(this);
    this.abort.abort();
    this.resizing?.disconnect();
    cancelAnimationFrame(this.frame);
    if (this.plot._fullLayout) this.plotly.purge(this.plot); // frees its WebGL contexts
    this.root.remove();
  }
}

// -------------------------------------------------------------------- helpers

function hasWebGL() {
  const context = document.createElement("canvas").getContext("webgl");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(context);
}

/** plotly.js, once a page; kept in the browser's cache storage, because Streamlit sends it without a lifetime. */
function loadPlotly(url) {
  window.chaffinchPlotly ??= (async () => {
    let source = url;
    try {
      const cache = await caches.open("chaffinch-plotly");
      let hit = await cache.match(url);
      if (!hit) {
        for (const old of await cache.keys()) await cache.delete(old);
        await cache.add(url);
        hit = await cache.match(url);
      }
      source = URL.createObjectURL(await hit.blob());
    } catch {
      source = url; // no cache storage outside of https and localhost
    }
    await new Promise((resolve, reject) => {
      const script = make("script", { src: source });
      script.onload = resolve;
      script.onerror = () => reject(new Error("plotly.js could not be loaded. Reload the page to try again."));
      document.head.append(script);
    });
    if (source !== url) URL.revokeObjectURL(source);
    return window.Plotly;
  })().catch((error) => {
    window.chaffinchPlotly = undefined; // the next rerun tries again
    throw error;
  });
  return window.chaffinchPlotly;
}

async function fetchPoints({ points: path, count, indexed }) {
  const response = await fetch(address(path));
  if (!response.ok) throw new Error("the positions could not be loaded. Reload the page to try again.");
  const buffer = await response.arrayBuffer();
  const x = new Float32Array(buffer, 0, count), y = new Float32Array(buffer, 4 * count, count);
  return { x, y, index: indexed ? new Int32Array(buffer, 8 * count, count) : null, grid: new Grid(x, y) };
}

/** Points in square cells, to find those near a place. */
class Grid {
  constructor(x, y) {
    const ends = (values) => values.reduce(([a, b], v) => [v < a ? v : a, v > b ? v : b], [Infinity, -Infinity]);
    const [[x0, x1], [y0, y1]] = [ends(x), ends(y)];
    this.side = Math.min(400, Math.max(8, Math.ceil(Math.sqrt(x.length))));
    Object.assign(this, { x0, y0, cell: Math.max(x1 - x0, y1 - y0, 1e-9) / this.side });
    const cells = (this.side + 1) ** 2;
    const home = Int32Array.from(x, (v, i) => {
      const at = this.row(y[i], y0) * (this.side + 1) + this.row(v, x0);
      return Number.isNaN(v + y[i]) ? cells : at;
    });
    this.start = new Int32Array(cells + 2); // start[c]..start[c + 1] of order: the points of cell c
    for (const c of home) this.start[c + 1]++;
    for (let c = 0; c <= cells; c++) this.start[c + 1] += this.start[c];
    const next = this.start.slice();
    this.order = new Int32Array(x.length);
    home.forEach((c, i) => { this.order[next[c]++] = i; });
  }

  row(value, origin) {
    return Math.min(this.side, Math.max(0, Math.floor((value - origin) / this.cell)));
  }

  visit(x, y, reach, see) {
    for (let r = this.row(y - reach, this.y0); r <= this.row(y + reach, this.y0); r++) {
      const line = r * (this.side + 1);
      const to = this.start[line + this.row(x + reach, this.x0) + 1];
      for (let k = this.start[line + this.row(x - reach, this.x0)]; k < to; k++) see(this.order[k]);
    }
  }
}

/** The selection that Python sent: an outline, or the samples selected on a linked map. */
function selected({ outline, state }) {
  return outline && (outline.points ? outline : { ...outline, within: state.map((bits) => bits & SELECTED) });
}

/** Even-odd rule, the same arithmetic as `inside` in ui/scatter.py. */
function insideOutline({ x, y }, outline) {
  const result = new Uint8Array(x.length);
  const [xs, ys] = [outline.map((p) => p[0]), outline.map((p) => p[1])];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let i = 0; i < x.length; i++) {
    const px = x[i], py = y[i];
    if (!(px >= left && px <= right && py >= low && py <= high)) continue;
    for (let k = 0, j = xs.length - 1; k < xs.length; j = k++) {
      if ((ys[k] > py) !== (ys[j] > py) && px < ((xs[j] - xs[k]) * (py - ys[k])) / (ys[j] - ys[k]) + xs[k]) result[i] ^= 1;
    }
  }
  return result;
}

function* range(n) {
  for (let i = 0; i < n; i++) yield i;
}

/** Positions by rising colour code, so that the high end of a scale is drawn on top. */
function byCode(code) {
  const start = new Int32Array(257), order = new Int32Array(code.length);
  for (const c of code) start[c + 1]++;
  for (let c = 0; c < 256; c++) start[c + 1] += start[c];
  code.forEach((c, i) => { order[start[c]++] = i; });
  return order;
}

/** The colour of each code: the palette itself, or 256 steps between its stops. */
function colourTable({ names, palette }) {
  if (names.length || palette.length < 2) return palette.length < 2 ? Array(256).fill(palette[0]) : palette;
  const stops = palette.map(readColour);
  return Array.from({ length: 256 }, (_, step) => {
    const place = (step / 255) * (stops.length - 1), from = Math.min(Math.floor(place), stops.length - 2);
    return between(stops[from], stops[from + 1], place - from);
  });
}

/** Ranges of a view by its centre and the size of a pixel in data units. */
function around([x, y], unit, width, height) {
  const [w, h] = [(width * unit) / 2, (height * unit) / 2];
  return { x: [x - w, x + w], y: [y - h, y + h] };
}

/** Any CSS colour as [red, green, blue]. */
function readColour(colour) {
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

/** The colour a share of the way from one [red, green, blue] to another, as #rrggbb. */
function between(a, b, share) {
  const hex = (v) => Math.round(v).toString(16).padStart(2, "0");
  return `#${a.map((v, k) => hex(v + (b[k] - v) * share)).join("")}`;
}

/** A number to three digits of the span it is an end of: 0.0000108 on a scale up to 1 is 0. */
function short(value, span) {
  const places = Math.min(20, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(span) || 1))));
  return value.toLocaleString("en", { maximumFractionDigits: places });
}
