// The results that this browser has seen, kept in its own storage until the user forgets them. The service keeps the jobs
// themselves; an entry has the id, the name, the best label and a small copy of the image.

const ITEM = 'imgcls-history';
const MOST = 50;

/** The entries, newest first. Another program may have written the storage, so each is checked. */
export function entries() {
  try {
    const stored = JSON.parse(localStorage.getItem(ITEM) ?? '[]');
    const isEntry = (entry) => typeof entry?.id === 'string' && typeof entry.name === 'string' && typeof entry.label === 'string';
    return Array.isArray(stored) ? stored.filter(isEntry).slice(0, MOST) : [];
  } catch {
    return [];
  }
}

/** Adds an entry in front. When the storage is full, the older half is dropped until the rest fits. */
export function remember(entry) {
  let kept = [entry, ...entries().filter((other) => other.id !== entry.id)].slice(0, MOST);
  while (kept.length > 0) {
    try {
      localStorage.setItem(ITEM, JSON.stringify(kept));
      return;
    } catch {
      kept = kept.slice(0, Math.floor(kept.length / 2));
    }
  }
}

export function forget() {
  try {
    localStorage.removeItem(ITEM);
  } catch {
    // There is no storage, and so nothing in it.
  }
}
