// The page of one result: it asks for the job as any client does, with the key of the tab, and shows what it may read.

import { answerOf, el, failedResult, modelOf, problemBox, spokenAnswer, timingsOf } from './draw.js';
import { about, byId, imageUrl, isFinal, jobPath, problemText, request, retryAfter, sleep } from './http.js';

const WAIT_SECONDS = 20;
const page = byId('result');
const { id } = page.dataset;

show();

async function show() {
  for (;;) {
    const answer = await request(`${jobPath(id)}?wait=${page.dataset.state === 'queued' ? WAIT_SECONDS : 0}`, {
      headers: { Accept: 'application/json' },
    });
    const { status, headers, body } = answer;
    if (isFinal(body)) return showResult(body);
    if (status === 200 && body) {
      showQueued(body);
      await sleep(500);
    } else if (status === 0 || status === 429 || status >= 500) {
      showStatus(`${problemText(answer).title}. Asking again.`);
      await sleep(retryAfter(headers) ?? 3_000);
    } else {
      page.dataset.state = 'failed';
      showStatus('');
      const missing = 'There is no such result, it was deleted, or it belongs to another key.';
      const { title, detail } = problemText(answer);
      byId('answer').replaceChildren(problemBox(status === 404 ? { title: 'No such result', detail: missing } : { title, detail }));
      return;
    }
  }
}

function showQueued({ position, eta_seconds: eta, message }) {
  page.dataset.state = 'queued';
  const parts = [message ? 'No worker is running; the image is kept.' : 'The image is in the queue.'];
  if (position > 1) parts.push(`Position ${position}.`);
  if (typeof eta === 'number') parts.push(`About ${about(eta)} left.`);
  showStatus(parts.join(' '));
  showImage();
}

function showStatus(text) {
  byId('status').textContent = text;
}

async function showResult(result) {
  page.dataset.state = result.status;
  showStatus('');
  showImage(result.filename);
  byId('name').textContent = result.filename || 'Result';
  document.title = `${result.status === 'succeeded' ? spokenAnswer(result) : 'Failed'} · imgcls`;
  const isGood = result.status === 'succeeded';
  byId('answer').replaceChildren(isGood ? answerOf(result) : problemBox(failedResult(result)));
  byId('facts').replaceChildren(timingsOf(result), history(result), el('p', '', modelOf(result), { 'data-testid': 'model' }));
  const json = byId('json');
  json.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 2)], { type: 'application/json' }));
  json.hidden = false;
}

/** When each stage was over. */
function history(result) {
  const list = el('ol', 'history', undefined, { 'aria-label': 'History', 'data-testid': 'history' });
  for (const { event, at } of Array.isArray(result.timeline) ? result.timeline : []) {
    const item = el('li');
    item.append(el('span', '', event), el('time', '', new Date(at).toLocaleString(undefined, {
      dateStyle: 'short', timeStyle: 'medium',
    }), { datetime: at, title: at }));
    list.append(item);
  }
  return list;
}

let isImageShown = false;
async function showImage(name = '') {
  if (isImageShown) return;
  isImageShown = true;
  const url = await imageUrl(id, 'image');
  const place = byId('image');
  if (!url) return;
  const image = el('img', '', undefined, { alt: name || 'The image' });
  image.addEventListener('error', () => showCopy(image, place), { once: true });
  image.src = url;
  place.replaceChildren(image);
}

/** Shows the small copy that the service makes of an image that this browser cannot show. */
async function showCopy(image, place) {
  const none = () => place.replaceChildren(el('p', '', 'The image is no longer kept, or cannot be shown.'));
  image.addEventListener('error', none, { once: true });
  const url = await imageUrl(id, 'thumbnail');
  if (url) image.src = url;
  else none();
}
