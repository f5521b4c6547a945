// Server-sent events, read from text as it comes. EventSource can send neither a form nor a key.

export class EventReader {
  #rest = '';
  #name = 'message';
  #data = [];
  #onEvent;

  /** `onEvent(name, data)` is called for each whole event. */
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  push(text) {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop();
    for (const line of lines) this.#take(line.replace(/\r$/, ''));
  }

  #take(line) {
    if (line === '') {
      if (this.#data.length > 0) this.#onEvent(this.#name, this.#data.join('\n'));
      this.#name = 'message';
      this.#data = [];
      return;
    }
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === 'event') this.#name = value;
    if (field === 'data') this.#data.push(value);
  }
}
