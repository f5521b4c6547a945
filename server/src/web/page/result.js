// The transcript: shown as it comes, copied, saved.

import { FORMATS, shortClock } from './formats.js';

export class ResultCard {
  #card;
  #text;
  #copy;
  #result = null;
  #name = 'transcript';

  /** `onSeek(seconds)` when a time is pressed. */
  constructor(card, onSeek) {
    this.#card = card;
    this.#text = card.querySelector('#text');
    this.#copy = card.querySelector('#copy');
    this.#copy.addEventListener('click', () => this.#toClipboard());
    for (const button of card.querySelectorAll('[data-save]')) {
      button.addEventListener('click', () => this.#save(button.dataset.save));
    }
    this.#text.addEventListener('click', (event) => {
      const time = event.target.closest('button[data-start]');
      if (time) onSeek(Number(time.dataset.start));
    });
  }

  /** Empty, for a recording of this name. */
  begin(name) {
    this.#result = null;
    this.#name = name.replace(/\.[^.]*$/, '') || 'transcript';
    this.#text.replaceChildren();
    this.#card.hidden = true;
    // A reader that follows the text hears it once, whole.
    this.#text.setAttribute('aria-busy', 'true');
    this.#ready(false);
  }

  add({ text, start }) {
    this.#card.hidden = false;
    const atEnd = this.#text.scrollHeight - this.#text.scrollTop - this.#text.clientHeight < 40;
    const line = document.createElement('p');
    if (start !== undefined) {
      const time = document.createElement('button');
      time.type = 'button';
      time.className = 'time';
      time.dataset.start = start;
      time.textContent = shortClock(start);
      time.setAttribute('aria-label', `Play from ${shortClock(start)}`);
      line.append(time);
    }
    line.append(`${text.trim()} `);
    this.#text.append(line);
    if (atEnd) this.#text.scrollTop = this.#text.scrollHeight;
  }

  finish(result) {
    this.#result = result;
    this.#card.hidden = false;
    this.#text.setAttribute('aria-busy', 'false');
    if (result.text.trim() === '') {
      const nothing = document.createElement('p');
      nothing.className = 'nothing';
      nothing.textContent = 'Nothing was said in this recording.';
      this.#text.replaceChildren(nothing);
      return;
    }
    this.#ready(true);
  }

  /** What has come stays readable; it is not whole and cannot be saved. */
  stop() {
    this.#text.setAttribute('aria-busy', 'false');
    if (this.#text.childElementCount === 0) this.#card.hidden = true;
  }

  hide() {
    this.#card.hidden = true;
  }

  #ready(whole) {
    const timed = whole && this.#result.segments.every(({ start }) => start !== undefined);
    this.#copy.disabled = !whole;
    for (const button of this.#card.querySelectorAll('[data-save]')) {
      button.disabled = FORMATS[button.dataset.save].timed ? !timed : !whole;
    }
  }

  async #toClipboard() {
    const text = this.#result.text.trim();
    const label = this.#copy.querySelector('span');
    try {
      await navigator.clipboard.writeText(text);
      label.textContent = 'Copied';
    } catch {
      // Not over plain HTTP: selected, it is one key press.
      getSelection().selectAllChildren(this.#text);
      label.textContent = 'Press Ctrl+C';
    }
    setTimeout(() => (label.textContent = 'Copy'), 2000);
  }

  #save(format) {
    const { type, write } = FORMATS[format];
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([write(this.#result)], { type: `${type};charset=utf-8` }));
    link.download = `${this.#name}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}
