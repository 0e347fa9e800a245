// The state of the service: waiting and processed images, workers, rate and times, with their course over the last minutes.
// Shown only to those who may ask for it (GET /v1/fleet).

import { about, byId, milliseconds, send } from './http.js';

const INTERVAL_MS = 2_000;
const SAMPLES = 90;
const WIDTH = 180;
const HEIGHT = 36;

const samples = { jobs: [], rate: [] };
let timer = 0;

export function start() {
  refresh();
  document.addEventListener('visibilitychange', refresh);
  document.addEventListener('signed-in', refresh);
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  const { status, body } = await send('/v1/fleet', { headers: { Accept: 'application/json' }, cache: 'no-store' });
  const isShown = status === 200 && body?.queue && body.recent;
  if (isShown) draw(body);
  if (status !== 0) byId('panel').hidden = !isShown;
  // Those who may not see it are not asked again and again.
  if (isShown || status === 0 || status >= 500 || status === 429) timer = setTimeout(refresh, INTERVAL_MS);
}

function draw({ queue, workers, recent, expected_wait_seconds: wait, cost }) {
  const number = (value) => (typeof value === 'number' ? String(value) : '\u2013');
  const time = (ms) => (typeof ms === 'number' ? milliseconds(ms) : '\u2013');
  byId('panel-waiting').textContent = number(queue.waiting);
  byId('panel-in-flight').textContent = number(queue.in_flight);
  byId('panel-workers').textContent = number(workers?.ready);
  byId('panel-rate').textContent = number(recent.images_per_second);
  byId('panel-p50').textContent = time(recent.p50_ms);
  byId('panel-p99').textContent = time(recent.p99_ms);
  byId('panel-wait').textContent = typeof wait === 'number' ? (wait < 0.5 ? '0\u00a0s' : about(wait)) : '\u2013';
  // Without a price there is no figure.
  byId('panel-cost-figure').hidden = typeof cost?.per_thousand !== 'number';
  if (cost) byId('panel-cost').textContent = `${cost.per_thousand.toPrecision(2)}\u00a0${cost.currency}`;
  chart(byId('chart-jobs'), samples.jobs, queue.waiting + queue.in_flight, 'images in the queue');
  chart(byId('chart-rate'), samples.rate, recent.images_per_second, 'images per second');
}

/** Adds a sample and draws all of them as a line, from the left edge once there are enough. */
function chart(svg, values, value, what) {
  values.push(Number.isFinite(value) ? value : 0);
  if (values.length > SAMPLES) values.shift();
  const top = Math.max(1, ...values);
  const x = (at) => WIDTH - ((values.length - 1 - at) * WIDTH) / (SAMPLES - 1);
  const y = (of) => HEIGHT - 1 - (of / top) * (HEIGHT - 2);
  const line = values.map((of, at) => `${x(at).toFixed(1)},${y(of).toFixed(1)}`);
  svg.querySelector('.line').setAttribute('points', line.join(' '));
  svg.querySelector('.area').setAttribute('points', [`${x(0).toFixed(1)},${HEIGHT}`, ...line, `${WIDTH},${HEIGHT}`].join(' '));
  svg.setAttribute('aria-label', `${values.at(-1)} ${what}, at most ${top} lately`);
}
