// The document that xterm.js makes its elements with. Its renderer writes style sheets and style attributes, which the
// policy of these pages refuses; the same rules set through the CSS object model are allowed.

export function isolatedDocument(real: Document): Document {
  return new Proxy(real, {
    get(target, name) {
      if (name === "createElement") return (tag: string) => createElement(target, tag);
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}

function createElement(real: Document, tag: string): HTMLElement {
  return tag.toLowerCase() === "style" ? sheetElement(real) : styledElement(real.createElement(tag));
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

function styledElement<T extends HTMLElement>(element: T): T {
  element.setAttribute = (name: string, value: string) => {
    if (name === "style") element.style.cssText = value;
    else Element.prototype.setAttribute.call(element, name, value);
  };
  // The renderer clones its cells.
  element.cloneNode = (deep?: boolean) => {
    const made = Element.prototype.cloneNode.call(element, deep);
    return made instanceof HTMLElement ? styledElement(made) : made;
  };
  return element;
}
