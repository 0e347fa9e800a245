// Elements that show a result: the labels with their bars, the times, and a larger view of an image.

import { byId, forPeople, isObject, milliseconds, percent, textOf } from './http.js';

export const SHOWN_PREDICTIONS = 5;
const SHOWN_LABELS = 12;
/** The members of timings_ms, in the order in which they happen. */
export const STAGES = ['queued', 'fetched', 'decoded', 'inferred', 'total'];

/** Error codes that the same file would get again. */
const FINAL_CODES = ['undecodable', 'unsupported_type', 'too_many_pixels', 'decode_timeout', 'too_large_decoded', 'input_too_large',
  'malformed'];

/** Creates an element with text content and attributes. */
export function el(tag, className, text, attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function button(text, attributes = {}) {
  return el('button', 'button', text, { type: 'button', ...attributes });
}

/** The predictions of a result, and above them its labels if the model gives an image several. */
export function answerOf(result) {
  const answer = el('div');
  const labels = labelsOf(result);
  if (labels.length > 0) answer.append(labelList(labels));
  const list = el('ol', 'predictions', undefined, { 'aria-label': 'Predictions' });
  predictionsOf(result).forEach((prediction, rank) => {
    const row = el('li', 'prediction', undefined, { 'data-testid': 'prediction' });
    const bar = el('span', 'bar');
    const fill = el('span', 'fill');
    const label = labelOf(prediction);
    const text = el('span', 'label', label, { title: label });
    if (rank === 0) text.dataset.testid = 'top-label';
    bar.append(fill, text);
    row.append(bar);
    if (hasScore(prediction)) {
      fill.style.setProperty('--share', Math.min(Math.max(prediction.score, 0), 1));
      row.append(el('span', 'percent', percent(prediction.score), { 'data-testid': 'score' }));
    }
    list.append(row);
  });
  answer.append(list);
  return answer;
}

/** The labels above their thresholds; the scores of the best classes are in the list below them. */
function labelList(labels) {
  const list = el('ul', 'labels', undefined, { 'aria-label': 'Labels', 'data-testid': 'labels' });
  for (const { label } of labels.slice(0, SHOWN_LABELS)) list.append(el('li', '', label));
  const more = labels.length - SHOWN_LABELS;
  if (more > 0) list.append(el('li', 'more', `and ${more} more`));
  return list;
}

export function predictionsOf(result) {
  return (Array.isArray(result?.predictions) ? result.predictions : []).filter(isObject).slice(0, SHOWN_PREDICTIONS);
}

/** The labels of an image that may have several. Empty if the model gives each image one label, or if none applies. */
export function labelsOf(result) {
  return (Array.isArray(result?.labels) ? result.labels : []).filter((label) => textOf(label?.label));
}

export function labelOf(prediction) {
  return textOf(prediction?.label) || (prediction ? `class ${prediction.class_index}` : 'no prediction');
}

export function hasScore(prediction) {
  return typeof prediction?.score === 'number';
}

/** The answer as a screen reader announces it. */
export function spokenAnswer(result) {
  const labels = labelsOf(result);
  if (labels.length > 0) return labels.slice(0, SHOWN_LABELS).map((label) => label.label).join(', ');
  const [best] = predictionsOf(result);
  return `${labelOf(best)}${hasScore(best) ? `, ${percent(best.score)}` : ''}`;
}

export function modelOf(result) {
  return result?.model ? [result.model.name, result.model.version].filter(Boolean).join(' ') : '';
}

export function timing(name, ms) {
  const pair = el('div');
  pair.append(el('dt', '', name), el('dd', '', milliseconds(ms)));
  return pair;
}

/** The durations that the worker measured. */
export function timingsOf(result) {
  const timings = el('dl', 'timings', undefined, { 'data-testid': 'timings' });
  for (const name of STAGES) {
    const ms = result.timings_ms?.[name];
    if (typeof ms === 'number') timings.append(timing(name, ms));
  }
  return timings;
}

/** The problem of a result that is no success. `retry` says how its card is retried: by sending the file again, or not. */
export function failedResult(result) {
  const { code = '', message = '' } = result.error ?? {};
  if (result.status === 'expired' || code === 'expired') {
    return failure('No answer in time', message || 'The job expired before a worker classified the image.', 'upload');
  }
  const title = {
    undecodable: 'The image cannot be decoded',
    unsupported_type: 'File type not supported',
    too_many_pixels: 'Too many pixels',
    decode_timeout: 'Takes too long to decode',
    too_large_decoded: 'Needs too much memory to decode',
    input_too_large: 'File too large',
    input_missing: 'The stored image is missing',
    malformed: 'Malformed request',
    unknown_model: 'The worker does not have this model',
    attempts_exhausted: 'Failed after several attempts',
  }[code];
  const retry = FINAL_CODES.includes(code) ? null : 'upload';
  return failure(title ?? 'Classification failed', forPeople(textOf(message)), retry);
}

export function failure(title, detail, retry) {
  return { kind: 'failed', title, detail, retry };
}

export function problemBox(problem) {
  const box = el('div', 'problem', undefined, { 'data-testid': 'error' });
  box.append(el('p', 'problem-title', problem.title));
  if (problem.detail && problem.detail !== problem.title) box.append(el('p', '', problem.detail));
  return box;
}

/** A result of the past as an entry of a list, with a link to its page. `copy` is a small copy of the image that this page made,
 * if there is one; nothing else is shown. */
export function historyItem({ id, label, name, at, copy, testId }) {
  const isCopy = textOf(copy).startsWith('data:image/jpeg;base64,');
  const item = el('li', '', undefined, { 'data-testid': testId });
  const link = el('a', 'earlier-link', undefined, { href: `/results/${encodeURIComponent(id)}` });
  link.append(isCopy ? el('img', '', undefined, { src: copy, alt: '', width: '40', height: '40' }) : el('span', 'earlier-blank'));
  const words = el('span', 'earlier-words');
  words.append(el('strong', '', label), el('span', '', name));
  if (Number.isFinite(at)) words.append(el('time', '', new Date(at).toLocaleString(), { datetime: new Date(at).toISOString() }));
  link.append(words);
  item.append(link);
  return item;
}

/** Shows an image as large as the window allows, until it is closed. `url` may be null. */
export function enlarge(name, url, onClose = () => {}) {
  const viewer = byId('viewer');
  const image = el('img', '', undefined, { alt: name });
  const text = el('p', '', name);
  const cannot = () => image.replaceWith(el('p', '', 'This browser cannot show this type of image.'));
  image.addEventListener('error', cannot, { once: true });
  byId('viewer-content').replaceChildren(image, text);
  if (url) image.src = url;
  else cannot();
  viewer.addEventListener('close', () => {
    byId('viewer-content').replaceChildren();
    onClose();
  }, { once: true });
  viewer.showModal();
}
