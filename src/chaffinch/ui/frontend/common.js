// What map.js and gallery.js share: DOM building, addresses, and pictures cut from sprite sheets.

// This file is at <root>/_stcore/bidi-components/<component>/common.js, whatever server.baseUrlPath says.
const ROOT = new URL("../../../", import.meta.url);

export const address = (path) => new URL(path, ROOT).href;

/** Build an element. Text goes through textContent only, so data can never become markup. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const sheetImages = new Map(); // address → promise of a decoded image

/** Load one sheet. The server may still be making it, so ask again for a while. */
function sheetImage(url) {
  if (!sheetImages.has(url)) {
    const load = async () => {
      for (let attempt = 0; attempt < 30; attempt++) {
        const image = new Image();
        image.src = attempt ? `${url}?again=${attempt}` : url;
        try {
          await image.decode();
          return image;
        } catch {
          await new Promise((wake) => setTimeout(wake, Math.min(250 * (attempt + 1), 2000)));
        }
      }
      sheetImages.delete(url);
      return null;
    };
    sheetImages.set(url, load());
  }
  return sheetImages.get(url);
}

/** Give a canvas the shape of a picture, at most `box` CSS pixels large. */
export function shapeTile(canvas, { width, height }, box) {
  const scale = box / Math.max(width, height);
  Object.assign(canvas, { width, height });
  canvas.style.width = `${Math.round(width * scale)}px`;
  canvas.style.height = `${Math.round(height * scale)}px`;
  canvas.style.imageRendering = scale >= 1.5 ? "pixelated" : "auto";
}

/** Draw picture `index` of the sheets on a canvas. `wanted()` false: no longer needed. */
export async function drawTile(canvas, sheets, index, box, wanted = () => true) {
  const { width, height, columns, per_sheet: perSheet, url } = sheets;
  const number = String(Math.floor(index / perSheet)).padStart(4, "0");
  const image = await sheetImage(address(`${url}/sheet-${number}.png`));
  if (!image || !wanted()) return;
  shapeTile(canvas, sheets, box);
  const place = index % perSheet;
  const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
  canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
}
