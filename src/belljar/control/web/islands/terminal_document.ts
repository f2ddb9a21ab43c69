// The document that xterm.js makes its elements with. Its renderer writes style sheets and style attributes, which the
// policy of these pages refuses; the same rules set through the CSS object model are allowed.

export function isolatedDocument(real: Document): Document {
  // The rows of the renderer come from the page's own document, whatever document it is given.
  HTMLSpanElement.prototype.setAttribute = function (name: string, value: string) {
    if (name === "style") this.style.cssText = value;
    else Element.prototype.setAttribute.call(this, name, value);
  };
  return new Proxy(real, {
    get(target, name) {
      if (name === "createElement") return (tag: string) => (tag === "style" ? sheetElement(target) : target.createElement(tag));
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}

// An element in place of `style`, whose text becomes a constructed style sheet for as long as it is in the page.
function sheetElement(real: Document): HTMLElement {
  const element = real.createElement("div");
  const sheet = new CSSStyleSheet();
  real.adoptedStyleSheets = [...real.adoptedStyleSheets, sheet];
  element.hidden = true;
  Object.defineProperty(element, "textContent", {
    get: () => "",
    set: (text: string) => sheet.replaceSync(text),
  });
  element.remove = () => {
    real.adoptedStyleSheets = real.adoptedStyleSheets.filter((each) => each !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}
