// The content of cards: answers, and small copies of the images. Cards near the visible part of the page get theirs first, and the
// others once no image is under way, so that drawing does not slow down what the user waits for. Copies are drawn one at a time, so
// that the browser does not decode a hundred photographs at once.

import { el } from './draw.js';
import { imageUrl } from './http.js';

const PIXELS = 240;
const REMEMBERED_PIXELS = 80;
const NEARNESS = '50%'; // of the window's height, beyond its edges

/** Jobs whose cards are near the visible part. */
const near = new Set();
/** Jobs whose cards have no content yet. */
const unfilled = new Set();
/** Jobs whose cards have no copy of the image yet. */
const undrawn = new Set();
const jobOf = new WeakMap();
let isDrawing = false;
let page;

const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const job = jobOf.get(target);
      if (job.cleared) continue; // seen before it was cleared
      if (isIntersecting) {
        near.add(job);
        fill(job);
      } else {
        near.delete(job);
      }
    }
    drawAll();
  },
  { rootMargin: NEARNESS },
);

/** `callbacks`: isBusy() tells whether an image is under way; fill(job) writes what the card says; drawn(job) is called when it has a
 * copy of the image. */
export function start(callbacks) {
  page = callbacks;
}

/** A new card. */
export function add(job) {
  jobOf.set(job.card.element, job);
  unfilled.add(job);
  undrawn.add(job);
  observer.observe(job.card.element);
}

/** The card has to say something else now. */
export function changed(job) {
  unfilled.add(job);
  if (near.has(job)) fill(job);
}

/** The service has a copy of an image that this browser may be unable to draw. */
export function answered(job) {
  if (!job.isUndrawable) return;
  undrawn.add(job);
  drawAll();
}

export function forget(job) {
  for (const jobs of [near, unfilled, undrawn]) jobs.delete(job);
  observer.unobserve(job.card.element);
}

function fill(job) {
  if (unfilled.delete(job)) page.fill(job);
}

/** Draws until nothing is left to draw now. */
export async function drawAll() {
  if (isDrawing) return;
  isDrawing = true;
  try {
    for (let job = next(); job; job = next()) {
      fill(job);
      if (undrawn.delete(job) && (await draw(job))) page.drawn(job);
    }
  } finally {
    isDrawing = false;
  }
}

function next() {
  for (const job of near) if (undrawn.has(job)) return job;
  if (page.isBusy()) return undefined;
  return undrawn.values().next().value ?? unfilled.values().next().value;
}

/** A still smaller copy for the history of this browser, as a data URL. Empty if the card has no copy. */
export function smallCopy(job) {
  const canvas = job.card.thumb.querySelector('canvas');
  if (!canvas) return '';
  const small = el('canvas');
  small.width = REMEMBERED_PIXELS;
  small.height = REMEMBERED_PIXELS;
  small.getContext('2d').drawImage(canvas, 0, 0, REMEMBERED_PIXELS, REMEMBERED_PIXELS);
  return small.toDataURL('image/jpeg', 0.7);
}

/** Returns whether the card has its copy. Otherwise the type of the file stays on it. */
async function draw(job) {
  // This page loads nothing from other hosts.
  if (job.file.url) job.isUndrawable = true;
  if (!job.isUndrawable && (await drawFile(job))) return true;
  job.isUndrawable = true;
  return job.state === 'succeeded' && drawCopyOfService(job);
}

/** Draws the file, and revokes its object URL at once, so that the page does not keep full-size images in memory. */
async function drawFile(job) {
  const url = URL.createObjectURL(job.file);
  try {
    return await drawSquare(job, url);
  } catch {
    return false;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Draws the small copy that the service makes of an image that this browser cannot show. */
async function drawCopyOfService(job) {
  try {
    job.copyUrl = await imageUrl(job.id, 'thumbnail');
    return job.copyUrl !== null && (await drawSquare(job, job.copyUrl));
  } catch {
    job.copyUrl = null;
    return false;
  }
}

async function drawSquare(job, url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width === 0 || height === 0) return false;
  const side = Math.min(width, height);
  const canvas = el('canvas');
  canvas.width = PIXELS;
  canvas.height = PIXELS;
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, PIXELS, PIXELS);
  job.card.thumb.replaceChildren(canvas);
  return true;
}
