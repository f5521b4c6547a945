// The last commands, newest first.

import { keep, make } from './dom.js';
import { REASONS, bytes, outcome } from './words.js';

const SHOWN = 100;

export function showTimeline(root, records) {
  const counts = new Map();
  const named = records.map((record) => {
    const base = `${record.time} ${record.server} ${record.model} ${record.action}`;
    const count = (counts.get(base) ?? 0) + 1;
    counts.set(base, count);
    return { name: `${base} ${count}`, record };
  });
  keep(root, named.reverse().slice(0, SHOWN), ({ name }) => name, entry, () => {});
}

function entry({ record }) {
  const at = new Date(record.time);
  const would = record.outcome === 'Withheld';
  const verb = would ? `Would ${record.action.toLowerCase()}` : { Unload: 'Unloaded', Load: 'Loaded' }[record.action] ?? record.action;
  const failed = record.outcome === 'Refused' || record.outcome === 'Failed';
  const why = `${record.reason}: ${REASONS[record.reason] ?? 'for another reason'}${record.policy ? `, by ${record.policy}` : ''}`;
  return make('li', { class: 'event', 'data-outcome': record.outcome },
    make('time', { datetime: record.time, title: record.time }, at.toLocaleTimeString([], { hour12: false })),
    make('div', {},
      make('p', {}, make('strong', {}, failed ? `${record.action} did not happen` : verb), ` ${record.model} of ${record.server}, ${bytes(record.vramBytes)}`),
      make('p', { class: 'hint' }, `${why}; ${outcome(record)}`)));
}
