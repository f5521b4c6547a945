// Creates and updates elements.

export const $ = (id) => document.getElementById(id);

/** `make('p', { class: 'x', hidden: true }, 'text', child)`. A property that is null or undefined is left out. */
export function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function draw(tag, properties = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Changes only text that differs, so that screen readers do not read it again and a selection is not lost. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Gives `parent` one child for each of `items`. A child is identified by `key(item)`, created once by `create(item)`, and
 * updated by `update(element, item)`. The focused element stays in place.
 */
export function keep(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = known.get(name);
    known.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
    update(element, item);
  }
  for (const element of known.values()) element.remove();
}
