// The page: each file becomes a card, is sent with POST /v1/jobs, and is followed until its job ends.
// http.js has requests and keys, follow.js event streams, draw.js results, panel.js the state of the service, call.js code and files
// for users, cards.js which cards are drawn first, history.js what the browser remembers, kept.js what the service has for a key.

import * as code from './call.js';
import * as cards from './cards.js';
import { SHOWN_PREDICTIONS, STAGES, answerOf, button, el, enlarge, failedResult, failure, historyItem, labelOf, modelOf,
  predictionsOf, problemBox, spokenAnswer, timing, timingsOf } from './draw.js';
import * as jobsFollowed from './follow.js';
import * as past from './history.js';
import * as kept from './kept.js';
import { about, backOff, byId, hasKey, imageUrl, isObject, jobPath, problemText, request, retryAfter, size, sleep, submitHeaders,
  textOf, trouble } from './http.js';
import * as panel from './panel.js';

const MAX_UPLOADS = 4; // of six connections; follow.js has the others
const MAX_UPLOAD_ATTEMPTS = 6;
const FIRST_GROUP = 2; // files in one request; each further one may have twice as many
const MAX_GROUP = 25;
const MAX_GROUP_BYTES = 4e6; // large photographs are sent alone: a form is read completely before its first image is queued
const REDRAW_AFTER_MS = 100;

const STATE_TEXT = {
  waiting: 'Waiting to upload',
  uploading: 'Uploading',
  queued: 'In the queue',
  succeeded: 'Done',
  failed: 'Failed',
};

const page = {
  root: document.documentElement,
  files: byId('files'),
  model: byId('model'),
  compare: byId('compare'),
  toolbar: byId('toolbar'),
  summary: byId('summary'),
  retryFailed: byId('retry-failed'),
  cards: byId('cards'),
  announcer: byId('announcer'),
  maxBytes: Number(byId('drop').dataset.maxBytes) || Infinity,
};

/** All jobs with a card, in the order in which they were added. */
let jobs = [];
/** Jobs that wait for an upload slot, oldest first. */
let waiting = [];
let uploads = 0;
let groupLimit = FIRST_GROUP;

start();

function start() {
  byId('origin').textContent = location.origin;
  for (const id of ['terminal', 'drop', 'examples']) byId(id).hidden = false;
  // Only devices with a touch screen offer their camera for a file input.
  byId('camera-choice').hidden = !matchMedia('(pointer: coarse)').matches;

  for (const input of [page.files, byId('camera')]) {
    input.addEventListener('change', () => {
      const files = [...input.files];
      input.value = ''; // so that the same file can be chosen again
      addFiles(files);
    });
  }
  document.addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    addFiles(files);
  });
  for (const example of document.querySelectorAll('.example')) {
    example.addEventListener('click', () => addExample(example.dataset.file));
  }
  listenForDrops();
  listenForUrls();
  jobsFollowed.start({ progress: showProgress, final: finish, failed: fail, note: setNote });
  cards.start({ isBusy: () => jobs.some(isOpen), fill: fillCard, drawn: addCopy });
  offerModels();
  panel.start();
  code.start();
  kept.start();
  showHistory();

  byId('clear').addEventListener('click', clearAll);
  byId('save-csv').addEventListener('click', () => code.saveCsv(jobs));
  byId('save-json').addEventListener('click', () => code.saveJson(jobs));
  byId('forget').addEventListener('click', () => {
    past.forget();
    showHistory();
    announce('Forgotten.');
    page.files.focus();
  });
  page.retryFailed.addEventListener('click', () => {
    jobs.filter((job) => job.retry).forEach(retry);
    page.files.focus({ preventScroll: true }); // the button disappears; the scroll position stays
  });
  page.model.addEventListener('change', offerComparison);
}

/** Offers the models of the service if there are several. Without an answer, the service uses its first one. */
async function offerModels() {
  const { body } = await request('/v1/models', { headers: { Accept: 'application/json' } });
  const models = (Array.isArray(body?.models) ? body.models : []).filter((model) => textOf(model?.name));
  if (models.length < 2) return;
  page.compare.append(el('option', '', 'no other model', { value: '' }));
  for (const { name, default: isDefault } of models) {
    const option = el('option', '', name, { value: name });
    option.selected = isDefault === true;
    page.model.append(option);
    page.compare.append(el('option', '', name, { value: name }));
  }
  offerComparison();
  byId('model-choice').hidden = false;
}

/** A model is not compared with itself. */
function offerComparison() {
  for (const option of page.compare.options) option.disabled = option.value !== '' && option.value === page.model.value;
  if (page.compare.selectedOptions[0]?.disabled) page.compare.value = '';
}

// ------------------------------------------------------------------------------------------- adding files

function listenForDrops() {
  let depth = 0; // dragenter and dragleave also fire for every child
  const dragging = (on) => page.root.classList.toggle('dragging', on);
  const carriesFiles = (event) => event.dataTransfer?.types.includes('Files');

  window.addEventListener('dragenter', (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    dragging(true);
  });
  window.addEventListener('dragleave', (event) => {
    if (!carriesFiles(event)) return;
    depth = Math.max(0, depth - 1);
    if (depth === 0) dragging(false);
  });
  window.addEventListener('dragover', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = 'copy';
  });
  window.addEventListener('drop', async (event) => {
    depth = 0;
    dragging(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    addFiles(await droppedFiles(event.dataTransfer));
  });
}

/** Returns the dropped files, and the images in dropped folders. */
async function droppedFiles(transfer) {
  // All entries are read before the first await, because the transfer is empty afterwards.
  const dropped = [...transfer.items]
    .filter((item) => item.kind === 'file')
    .map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const lists = [];
  for (const { entry, file } of dropped) {
    if (entry?.isDirectory) lists.push(await imagesIn(entry));
    else if (file) lists.push([file]);
  }
  return lists.flat();
}

async function imagesIn(folder) {
  const reader = folder.createReader();
  const found = [];
  try {
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (entries.length === 0) break;
      for (const entry of entries) {
        if (entry.isDirectory) {
          found.push(...(await imagesIn(entry)));
        } else {
          const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
          if (file.type.startsWith('image/')) found.push(file);
        }
      }
    }
  } catch {
    announce(`The folder ${folder.name} could not be read completely.`);
  }
  return found;
}

/** Shows the field for an address if the service fetches images. */
function listenForUrls() {
  const form = byId('by-url');
  if (form.dataset.allowed !== 'true') return;
  form.hidden = false;
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const url = byId('url').value.trim();
    form.reset();
    addFiles([fileAt(url)]);
  });
}

/** What stands for the file at an address, which only the service reads. */
function fileAt(url) {
  const { hostname, pathname } = new URL(url);
  let name = pathname.split('/').pop();
  try {
    name = decodeURIComponent(name);
  } catch {
    // The name is shown as it is in the address.
  }
  return { url, name: name || hostname, type: '', size: 0 };
}

async function addExample(name) {
  try {
    const response = await fetch(`/assets/${name}`);
    addFiles([new File([await response.blob()], name.replace('example-', ''), { type: 'image/jpeg' })]);
  } catch {
    announce('The example cannot be loaded.');
  }
}

/** Adds cards for the files above all others, in their given order: the user looks for the newest files. */
function addFiles(files) {
  if (files.length === 0) {
    announce('No images found.');
    return;
  }
  const added = files.flatMap(newJobs);
  const elements = document.createDocumentFragment();
  for (const job of added) elements.append(job.card.element);
  page.cards.prepend(elements);
  jobs.push(...added);
  added.forEach(cards.add);
  announce(`${count(files.length)} added.`);
  for (const job of added) {
    if (job.file.size > page.maxBytes) {
      const detail = `It has ${size(job.file.size)}. ${byId('drop').dataset.limitText}`;
      fail(job, failure('File too large', detail, null));
    } else {
      waiting.push(job);
    }
  }
  changed();
  pumpUploads();
}

/** Two jobs if two models are compared, otherwise one. */
function newJobs(file) {
  const models = page.compare.value ? [page.model.value, page.compare.value] : [page.model.value];
  const pair = models.map((model) => newJob(file, model, models.length > 1));
  for (const job of pair) job.pair = pair;
  return pair;
}

function newJob(file, model, isCompared) {
  const job = {
    file,
    model, // empty: the first of the service
    state: 'waiting',
    id: null,
    result: null,
    cleared: false,
    retry: null, // how a failed job is retried: 'upload' sends the file again, 'resume' follows its id again
    startedAt: 0,
    uploading: null, // the AbortController of the upload
    isAlone: Boolean(file.url), // in a request of its own
  };
  job.card = newCard(job, isCompared);
  return job;
}

function clearAll() {
  for (const job of jobs) {
    job.cleared = true;
    job.uploading?.abort();
    jobsFollowed.unfollow(job);
    cards.forget(job);
  }
  jobs = [];
  waiting = [];
  page.cards.replaceChildren();
  showHistory();
  announce('Cleared.');
  changed();
  page.files.focus();
}

function retry(job) {
  const how = job.retry;
  job.retry = null;
  if (how === 'resume') {
    follow(job);
  } else {
    job.id = null;
    job.result = null;
    waiting.push(job);
    setState(job, 'waiting');
    pumpUploads();
  }
}

// ------------------------------------------------------------------------------------------------ upload pool

function pumpUploads() {
  while (uploads < MAX_UPLOADS && waiting.length > 0) {
    const group = nextGroup();
    uploads += 1;
    (group.length > 1 ? uploadGroup(group) : upload(group[0])).finally(() => {
      uploads -= 1;
      pumpUploads();
    });
  }
}

/** Takes files that are sent in one request. The first groups are small, so that workers begin at once, and the last ones too, so
 * that no slot has much to do when the others have nothing left. */
function nextGroup() {
  const [first] = waiting;
  const most = first.isAlone ? 1 : Math.min(groupLimit, MAX_GROUP, Math.ceil(waiting.length / (2 * MAX_UPLOADS)));
  const group = new Set([first]);
  let bytes = first.file.size;
  for (const job of waiting) {
    if (group.size >= most) break;
    if (job.isAlone || job.model !== first.model || group.has(job)) continue;
    bytes += job.file.size;
    if (bytes > MAX_GROUP_BYTES) break;
    group.add(job);
  }
  waiting = waiting.filter((job) => !group.has(job));
  groupLimit = waiting.length === 0 ? FIRST_GROUP : 2 * groupLimit;
  return [...group];
}

/** Sends several files in one form. Those without an answer of their own are sent again, each by itself. */
async function uploadGroup(group) {
  const controller = new AbortController();
  const form = new FormData();
  for (const job of group) {
    job.uploading = controller;
    job.startedAt = performance.now();
    setState(job, 'uploading');
    form.append('image', job.file, job.file.name);
  }
  const options = { method: 'POST', body: form, headers: { Accept: 'application/json' }, signal: controller.signal };
  const answer = await request(jobsPath(group[0]), options);
  const items = answer.items?.length === group.length ? answer.items : [];
  group.forEach((job, at) => {
    if (job.cleared) return;
    const verdict = judgeItem(items[at], answer.headers);
    if (verdict.kind !== 'again') {
      takeVerdict(job, verdict);
      return;
    }
    job.isAlone = true;
    waiting.push(job);
    setState(job, 'waiting');
  });
}

/** Takes the last answer to an upload: the job is accepted, or has failed. */
function takeVerdict(job, verdict) {
  if (verdict.kind !== 'accepted') {
    fail(job, verdict);
    return;
  }
  job.id = verdict.id;
  follow(job);
}

/** Decides what the answer to one file of a form means: its job, its result or its problem. It has no side effects. */
function judgeItem(item, headers) {
  if (!isObject(item)) return { kind: 'again' };
  return judgeUpload({ status: typeof item.status === 'number' ? item.status : 202, headers, body: item }, 1);
}

function jobsPath(job) {
  return job.model ? `/v1/jobs?model=${encodeURIComponent(job.model)}` : '/v1/jobs';
}

/** Sends one file. Keeps its upload slot while a full server asks it to wait, so that the other files wait, too. */
async function upload(job) {
  const { signal } = (job.uploading = new AbortController());
  job.startedAt = performance.now();
  for (let attempt = 1; !job.cleared; attempt += 1) {
    setState(job, 'uploading');
    const { url } = job.file;
    const headers = url ? { Accept: 'application/json', 'Content-Type': 'application/json' } : submitHeaders(job.file);
    const body = url ? JSON.stringify({ image_url: url }) : job.file;
    const answer = await request(jobsPath(job), { method: 'POST', body, headers, signal });
    if (job.cleared) return;

    let verdict = judgeUpload(answer, attempt);
    if (answer.status === 0 && !url && !(await isReadable(job.file))) {
      verdict = failure('The file cannot be read', 'It was moved, changed or deleted after it was chosen.', null);
    }
    if (job.cleared) return;
    if (verdict.kind !== 'again') {
      takeVerdict(job, verdict);
      return;
    }
    setState(job, 'waiting', `${verdict.why} Trying again in ${about(verdict.delay / 1000)}.`);
    await sleep(verdict.delay, signal);
  }
}

/** fetch reports a lost connection and a deleted file alike, so the file itself is checked. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** Decides what the answer to an upload means. It has no side effects. */
function judgeUpload(answer, attempt) {
  const { status, headers, body } = answer;
  if (status >= 200 && status < 300) {
    const id = body?.id ?? headers.get('Location')?.split('/').pop();
    if (id) return { kind: 'accepted', id: String(id) };
    return failure('Unexpected answer', 'The server accepted the image but returned no job id.', 'upload');
  }
  const transient = [0, 429, 502, 503].includes(status);
  if (transient && attempt < MAX_UPLOAD_ATTEMPTS) {
    return { kind: 'again', delay: retryAfter(headers) ?? backOff(attempt, 1_000, 15_000), why: trouble(status) };
  }
  const { title, detail } = problemText(answer);
  return failure(title, detail, transient || status >= 500 || status === 408 ? 'upload' : null);
}

// ---------------------------------------------------------------------------------------- what becomes of a job

function follow(job) {
  setState(job, 'queued');
  jobsFollowed.follow(job);
}

/** Shows the position and the expected end of a job that waits. */
function showProgress(job, { stage, position, eta_seconds: eta, message }) {
  const parts = [];
  if (message) parts.push('No worker is running. The image is kept and is classified as soon as one runs.');
  else if (stage === 'waiting_for_capacity') parts.push('A worker is starting.');
  if (position > 1) parts.push(`Position ${position} in the queue.`);
  if (typeof eta === 'number') parts.push(`About ${about(eta)} left.`);
  setNote(job, parts.join(' '));
}

function finish(job, result) {
  job.roundTripMs = performance.now() - job.startedAt;
  job.result = result;
  if (result.status !== 'succeeded') {
    fail(job, failedResult(result), result);
    return;
  }
  setState(job, 'succeeded');
  // The other card of a comparison says now whether the models agree.
  job.pair.forEach(cards.changed);
  settled(`${job.file.name}: ${spokenAnswer(result)}.`);
  remember(job);
  cards.answered(job);
}

function fail(job, problem, result = null) {
  job.retry = problem.retry;
  setState(job, 'failed');
  showProblem(job, problem, result);
  settled(`${job.file.name}: ${problem.title}.`);
}

/** Says whether the models of a comparison agree, once both have answered. */
function comparisonOf({ pair }) {
  if (pair.length < 2 || pair.some((job) => job.state !== 'succeeded')) return [];
  const [one, other] = pair.map((job) => labelOf(predictionsOf(job.result)[0]));
  const text = one === other ? 'Both models give the same best label.' : 'The models give different best labels.';
  return [el('p', 'comparison', text, { 'data-testid': 'comparison' })];
}

function remember(job) {
  const [best] = predictionsOf(job.result);
  past.remember({
    id: job.id,
    name: job.file.name.slice(0, 200),
    label: spokenAnswer(job.result).slice(0, 200),
    score: best?.score,
    at: Date.now(),
    copy: () => cards.smallCopy(job),
  });
}

function addCopy(job) {
  if (job.state === 'succeeded') past.addCopy(job.id, () => cards.smallCopy(job));
}

/** Lists the results of earlier visits. Those that have a card here are left out. */
function showHistory() {
  const shown = new Set(jobs.map((job) => job.id));
  const entries = past.entries().filter((entry) => !shown.has(entry.id));
  byId('earlier').hidden = entries.length === 0;
  byId('earlier-list').replaceChildren(...entries.map((entry) => historyItem({ ...entry, testId: 'earlier' })));
}

// ------------------------------------------------------------------------------------------------------- drawing

function newCard(job, isCompared) {
  const { name } = job.file;
  const card = {
    element: el('li', 'card', undefined, { 'data-testid': 'card', 'data-state': job.state, tabindex: '-1' }),
    thumb: button('', { 'data-testid': 'thumbnail', 'aria-label': `Enlarge ${name}` }),
    state: el('p', 'state', STATE_TEXT[job.state], { 'data-testid': 'state' }),
    body: el('div', 'card-body'),
    note: el('p', 'note', '', { 'data-testid': 'note' }),
    foot: el('div', 'card-foot'),
  };
  card.thumb.className = 'thumb';
  card.thumb.append(el('span', '', fileKind(job.file)));
  card.thumb.addEventListener('click', () => enlargeFile(job));
  const head = el('div', 'card-head');
  head.append(el('h2', 'name', name, { title: name, 'data-testid': 'name' }));
  if (isCompared) head.append(el('p', 'with-model', `with ${job.model}`));
  head.append(card.state);
  card.note.hidden = true;
  card.element.append(card.thumb, head, card.body, card.note, card.foot);
  return card;
}

/** Writes the answer, or as much space as one takes, so that the layout does not jump when it arrives. */
function fillCard(job) {
  const { body, foot } = job.card;
  if (job.state === 'failed') return; // its problem is written at once
  if (job.state === 'succeeded') {
    body.replaceChildren(answerOf(job.result), ...comparisonOf(job));
    showFoot(job, job.result);
  } else {
    body.replaceChildren(blankPredictions());
    drawBlankFoot(foot);
  }
}

function enlargeFile(job) {
  if (job.copyUrl) {
    enlarge(job.file.name, job.copyUrl);
    return;
  }
  if (job.file.url) {
    if (job.id) imageUrl(job.id, 'image').then((image) => enlarge(job.file.name, image));
    return;
  }
  const url = URL.createObjectURL(job.file);
  enlarge(job.file.name, url, () => URL.revokeObjectURL(url));
}

function blankPredictions() {
  const list = el('ol', 'predictions', undefined, { 'aria-hidden': 'true' });
  for (let rank = 0; rank < SHOWN_PREDICTIONS; rank += 1) {
    const row = el('li', 'prediction');
    row.append(el('span', 'bar'));
    list.append(row);
  }
  return list;
}

function drawBlankFoot(foot) {
  const timings = el('dl', 'timings');
  for (const name of [...STAGES, 'round trip']) timings.append(timing(name, 0));
  foot.replaceChildren(timings, el('div', 'meta', '\u00a0'));
  foot.hidden = false;
}

/** Returns the text that replaces an image which the browser cannot draw, such as TIFF or HEIC. */
function fileKind(file) {
  const extension = /\.([a-z0-9]{1,5})$/i.exec(file.name)?.[1];
  return (extension ?? /^image\/([a-z0-9]{1,5})/.exec(file.type)?.[1] ?? 'file').toUpperCase();
}

function setState(job, state, note = '') {
  const { element, state: text } = job.card;
  const wasFailed = job.state === 'failed';
  job.state = state;
  if (wasFailed && state !== 'failed') cards.changed(job);
  element.dataset.state = state;
  text.textContent = STATE_TEXT[state];
  setNote(job, note);
  changed();
}

function setNote(job, text) {
  job.card.note.textContent = text;
  job.card.note.hidden = text === '';
}

function showProblem(job, problem, result) {
  const box = problemBox(problem);
  if (problem.retry) {
    const again = button('Retry', { 'data-testid': 'retry', 'aria-label': `Retry ${job.file.name}` });
    again.addEventListener('click', () => {
      retry(job);
      job.card.element.focus(); // the button goes away with its box
    });
    box.append(again);
  }
  job.card.body.replaceChildren(box);
  if (job.id) showFoot(job, result);
  else job.card.foot.hidden = true;
}

/** Shows the durations that the worker measured, the round trip that this page measured, and what can be done with the result. */
function showFoot(job, result) {
  const { foot } = job.card;
  foot.replaceChildren();
  if (result) {
    const timings = timingsOf(result);
    timings.append(timing('round trip', job.roundTripMs));
    foot.append(timings);
  }
  const meta = el('div', 'meta');
  const facts = [modelOf(result), result?.attempt > 1 ? `attempt ${result.attempt}` : ''].filter(Boolean);
  meta.append(el('span', '', facts.join(' · '), { 'data-testid': 'model' }));
  const links = el('span', 'links');
  const named = (text) => ({ 'aria-label': `${text} ${job.file.name}` });
  const copy = el('button', 'link', 'Code', { type: 'button', 'data-testid': 'code', ...named('Code that classifies') });
  copy.addEventListener('click', () => code.showCode(job));
  links.append(
    el('a', '', 'Page', { href: `/results/${encodeURIComponent(job.id)}`, 'data-testid': 'result-page', ...named('Page of the result of') }),
    el('a', '', 'JSON', {
      href: result && hasKey() ? resultUrl(result) : jobPath(job.id), // a link carries no key
      target: '_blank',
      rel: 'noopener',
      'data-testid': 'result-link',
      ...named('Result as JSON of'),
    }),
    copy,
  );
  meta.append(links);
  foot.append(meta);
  foot.hidden = false;
}

function resultUrl(result) {
  return URL.createObjectURL(new Blob([JSON.stringify(result, null, 2)], { type: 'application/json' }));
}

function count(images) {
  return images === 1 ? '1 image' : `${images} images`;
}

function isOpen(job) {
  return job.state !== 'succeeded' && job.state !== 'failed';
}

function summarize() {
  const done = jobs.filter((job) => job.state === 'succeeded').length;
  const failed = jobs.filter((job) => job.state === 'failed').length;
  const open = jobs.length - done - failed;
  const parts = [count(jobs.length), `${done} done`];
  if (failed > 0) parts.push(`${failed} failed`);
  if (open > 0) parts.push(`${open} in progress`);
  return { text: parts.join(', '), ended: done + failed, open };
}

/** The summary is drawn once for all changes of a moment, since 200 files change many hundred times, and at once when all are done. */
let redrawTimer = 0;
function changed() {
  // Not before the card of the last job says what it has to say.
  if (!jobs.some(isOpen)) queueMicrotask(redraw);
  else redrawTimer ||= setTimeout(redraw, REDRAW_AFTER_MS);
}

function redraw() {
  clearTimeout(redrawTimer);
  redrawTimer = 0;
  const { text, ended, open } = summarize();
  const some = jobs.length > 0;
  page.root.classList.toggle('has-cards', some);
  page.toolbar.hidden = !some;
  page.summary.textContent = some ? text : '';
  page.retryFailed.hidden = jobs.filter((job) => job.retry).length < 2;
  const none = !jobs.some((job) => job.result);
  for (const id of ['save-csv', 'save-json']) byId(id).hidden = none;
  document.title = open > 0 ? `(${ended}/${jobs.length}) imgcls` : 'imgcls';
  if (open === 0) cards.drawAll();
}

// Screen readers announce each result while there are few, and only the summary when there are many.
let unannounced = [];
let announceTimer = 0;
function settled(sentence) {
  unannounced.push(sentence);
  if (announceTimer) return;
  announceTimer = setTimeout(() => {
    announceTimer = 0;
    const { text } = summarize();
    announce(unannounced.length <= 3 ? `${unannounced.join(' ')} ${text}.` : `${text}.`);
    unannounced = [];
  }, 1_500);
}

function announce(text) {
  page.announcer.textContent = text;
}
