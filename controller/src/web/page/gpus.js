// Nodes and their GPUs: what holds the memory, and where pressure begins.

import { draw, keep, make, write } from './dom.js';
import { GPU_REASONS, PRESSURE, bytes } from './words.js';

/** Shows `gpus` of the state in `root`, grouped by node; `servers` name nodes without a known GPU. */
export function showGpus(root, gpus, servers) {
  const names = [...new Set([...gpus.map(({ node }) => node), ...servers.map(({ node }) => node)])].sort();
  const nodes = names.map((name) => ({
    name,
    gpus: gpus.filter(({ node }) => node === name),
    servers: servers.filter(({ node }) => node === name),
  }));
  keep(root, nodes, ({ name }) => name, newNode, showNode);
}

function newNode({ name }) {
  return make('article', { class: 'card node', 'aria-label': `Node ${name}` },
    make('div', { class: 'bar' }, make('h3', {}, name), make('span', { class: 'hint', 'data-part': 'servers' })),
    make('div', { class: 'gpus' }));
}

function showNode(element, { gpus, servers }) {
  const failing = servers.filter(({ state }) => state === 'failing');
  const count = `${servers.length} ${servers.length === 1 ? 'server' : 'servers'}`;
  write(element.querySelector('[data-part=servers]'), failing.length > 0 ? `${count}, ${failing.length} not answering` : count);
  const list = element.querySelector('.gpus');
  if (gpus.length === 0) {
    keep(list, [{}], () => 'none', () => make('p', { class: 'hint' }, 'No GPU is reported from here.'), () => {});
  } else {
    keep(list, gpus, ({ uuid }) => uuid, newGpu, showGpu);
  }
}

function newGpu({ uuid }) {
  const figure = (part, name) => make('div', { 'data-figure': part }, make('dt', {}, name), make('dd', { 'data-part': part }));
  return make('article', { class: 'gpu', 'aria-label': `GPU ${uuid}` },
    make('div', { class: 'gpu-head' },
      make('h4', { title: uuid }, uuid),
      make('span', { class: 'badge', 'data-part': 'pressure' })),
    make('div', { class: 'memory' }),
    make('dl', { class: 'figures' }, figure('ours', 'Ours'), figure('others', 'Others'), figure('free', 'Free'),
      figure('total', 'Total')),
    make('p', { class: 'hint', 'data-part': 'thresholds' }));
}

function showGpu(element, gpu) {
  const part = (name) => element.querySelector(`[data-part=${name}]`);
  const pressure = PRESSURE[gpu.pressure] ?? gpu.pressure;
  const reason = gpu.reason ? `: ${GPU_REASONS[gpu.reason] ?? gpu.reason}` : '';
  element.dataset.pressure = gpu.pressure;
  element.dataset.fresh = gpu.fresh;
  write(part('pressure'), `${pressure}${reason}`);
  write(part('ours'), bytes(gpu.oursBytes));
  write(part('others'), bytes(gpu.othersBytes));
  write(part('free'), bytes(gpu.freeBytes));
  write(part('total'), bytes(gpu.totalBytes));
  const thresholds = gpu.thresholds.map(({ level, belowBytes, policy }) =>
    `${level.toLowerCase()} below ${bytes(belowBytes)} (${policy})`);
  const wanted = gpu.targetBytes === null ? '' : ` Making ${bytes(gpu.targetBytes)} available.`;
  write(part('thresholds'), thresholds.length > 0 ? `Pressure: ${thresholds.join(', ')}.${wanted}` : 'No policy watches its memory.');
  element.querySelector('.memory').replaceChildren(bar(gpu));
}

/** Others from the left, ours beside them, free memory at the right; thresholds are measured from the right. */
function bar(gpu) {
  const share = (count) => `${(100 * Math.min(1, count / Math.max(1, gpu.totalBytes))).toFixed(2)}%`;
  const label = `${bytes(gpu.oursBytes)} ours, ${bytes(gpu.othersBytes)} others, ${bytes(gpu.freeBytes)} free of ${bytes(gpu.totalBytes)}`;
  const marks = gpu.thresholds.flatMap(({ level, belowBytes }) => {
    const x = share(gpu.totalBytes - belowBytes);
    const line = (name) => draw('line', { class: name, x1: x, x2: x, y1: 0, y2: 34 });
    // The halo makes the mark visible on every colour.
    return [line('halo'), line(`mark ${level.toLowerCase()}`)];
  });
  return draw('svg', { class: 'memory-bar', role: 'img', 'aria-label': label, width: '100%', height: 34 },
    draw('rect', { class: 'free', x: 0, y: 4, width: '100%', height: 26, rx: 6 }),
    draw('rect', { class: 'ours', x: share(gpu.othersBytes), y: 4, width: share(gpu.oursBytes), height: 26 }),
    draw('rect', { class: 'others', x: 0, y: 4, width: share(gpu.othersBytes), height: 26 }),
    ...marks);
}
