// A wrapping grid of clickable thumbnails. Python sends the tiles; a click sends back one index ("picked").
import { make, shapeTile } from "./common.js";

const TONES = {
  flag: ["!", "flagged"],
  clean: ["✓", "clean"],
  mislabelled: ["×", "mislabelled"],
  ood: ["?", "out of distribution"],
  differs: ["≠", "another label"],
};

const drawn = new WeakMap(); // parent element → {root, signature, send}

export default function ({ parentElement, data, setTriggerValue }) {
  let state = drawn.get(parentElement);
  if (!state) {
    state = { root: make("div", { class: "chf-gallery", role: "group", "aria-label": "Pictures" }) };
    state.root.addEventListener("keydown", (event) => moveFocus(state.root, event));
    state.root.addEventListener("focusin", (event) => rove(state.root, event.target));
    parentElement.append(state.root);
    drawn.set(parentElement, state);
  }
  state.send = (index) => setTriggerValue("picked", index);
  const signature = JSON.stringify([data.tiles, data.strip, data.size, data.colours]);
  if (signature !== state.signature) {
    const focused = state.root.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    state.signature = signature;
    state.root.style.setProperty("--chf-tile", `${data.size}px`);
    state.root.replaceChildren(...data.tiles.map((tile) => button(tile, data, state)));
    fill(state.root, data.strip);
    if (focused !== null) state.root.querySelector(`[data-index="${focused}"]`)?.focus();
  }
  for (const node of state.root.children) {
    const selected = Number(node.dataset.index) === data.selected;
    node.setAttribute("aria-pressed", String(selected));
  }
  const first = state.root.querySelector('[aria-pressed="true"]') ?? state.root.firstElementChild;
  if (first && !state.root.contains(document.activeElement)) rove(state.root, first);
}

function button(tile, data, state) {
  const [glyph, words] = TONES[tile.tone] ?? [];
  const label = [tile.title, tile.subtitle, words].filter(Boolean).join(", ");
  const node = make("button", {
    type: "button", class: "chf-tile", title: [tile.title, tile.subtitle].filter(Boolean).join("\n"),
    "aria-label": `Open ${label}`, "data-index": tile.index, "data-tone": glyph ? tile.tone : "", tabindex: "-1",
  });
  const frame = make("span", { class: "chf-frame" });
  if (data.strip) {
    const canvas = make("canvas");
    shapeTile(canvas, data.strip, data.size);
    frame.append(canvas);
  } else {
    frame.append(make("span", { class: "chf-blank", text: tile.title }));
  }
  if (glyph) {
    const colour = data.colours[tile.tone];
    node.style.setProperty("--chf-tone", colour);
    const badge = make("span", { class: "chf-badge", text: glyph, title: words, "aria-hidden": "true" });
    badge.style.color = isLight(colour) ? "#111" : "#fff";
    frame.append(badge);
  }
  node.append(frame);
  if (data.strip) node.append(make("span", { class: "chf-title", text: tile.title }));
  if (tile.subtitle) node.append(make("span", { class: "chf-subtitle", text: tile.subtitle }));
  node.addEventListener("click", () => state.send(tile.index));
  return node;
}

/** Cut the strip into the tiles' pictures. */
async function fill(root, strip) {
  if (!strip) return;
  const canvases = [...root.querySelectorAll("canvas")];
  const image = new Image();
  image.src = strip.url;
  await image.decode();
  const { width, height } = strip;
  canvases.forEach((canvas, at) => {
    canvas.getContext("2d").drawImage(image, at * width, 0, width, height, 0, 0, width, height);
  });
}

const isLight = (hex) => {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b > 140;
};

/** One tile is in the tab order; the arrow keys move between tiles. */
function rove(root, target) {
  for (const node of root.children) node.tabIndex = node === target ? 0 : -1;
}

function moveFocus(root, event) {
  const tiles = [...root.children];
  const at = tiles.indexOf(document.activeElement);
  if (at < 0) return;
  const below = tiles.findIndex((node) => node.offsetTop > tiles[0].offsetTop);
  const columns = below < 0 ? tiles.length : below;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const ends = { Home: 0, End: tiles.length - 1 };
  const to = event.key in ends ? ends[event.key] : at + (steps[event.key] ?? NaN);
  if (!tiles[to]) return;
  event.preventDefault();
  tiles[to].focus();
}
