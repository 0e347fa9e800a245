// The images that were sent with the key of the tab, as the service lists them (GET /v1/jobs), from any browser. Without a key
// there is no list here: the jobs of a service without keys belong to nobody.

import { hasScore, historyItem, labelOf } from './draw.js';
import * as past from './history.js';
import { byId, hasKey, percent, send, textOf } from './http.js';

const PAGE = 12;
const WORDS = { queued: 'In the queue', failed: 'Failed', expired: 'No answer in time' };

/** Where the next page begins; empty at the end. */
let next = '';

export function start() {
  byId('kept-more').addEventListener('click', () => load(true));
  document.addEventListener('signed-in', () => load(false));
  load(false);
}

async function load(isMore) {
  if (!hasKey()) return;
  const cursor = isMore && next ? `&after=${encodeURIComponent(next)}` : '';
  const { status, body } = await send(`/v1/jobs?limit=${PAGE}${cursor}`, { headers: { Accept: 'application/json' }, cache: 'no-store' });
  if (status !== 200 || !Array.isArray(body?.jobs)) return;
  const list = byId('kept-list');
  const copies = new Map(past.entries().map((entry) => [entry.id, entry.copy]));
  const items = body.jobs.filter((job) => textOf(job?.id)).map((job) => itemOf(job, copies.get(job.id)));
  if (!isMore) list.replaceChildren();
  list.append(...items);
  next = textOf(body.next);
  byId('kept-more').hidden = !next;
  byId('kept').hidden = list.children.length === 0 && !next;
  // The focus stays in the list when its button goes away.
  if (isMore) items[0]?.querySelector('a').focus();
}

/** `copy` is the small copy of the image that this browser has, if it sent the image. */
function itemOf({ id, status, filename, prediction, submitted_at: at }, copy) {
  const score = hasScore(prediction) ? `, ${percent(prediction.score)}` : '';
  const label = status === 'succeeded' ? `${labelOf(prediction)}${score}` : WORDS[status] ?? '';
  return historyItem({ id, label, name: textOf(filename), at: Date.parse(at), copy, testId: 'kept' });
}
