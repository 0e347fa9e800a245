//! The store, if it is not AWS's own.

use super::{Findings, Observed};

pub(super) fn check(observed: &Observed, findings: &mut Findings) {
    let Some(store) = &observed.store else { return };
    let on = format!("store {}", store.endpoint_url);
    if store.keeps_conditions == Some(false) {
        findings.risk(
            &on,
            "it does not refuse a second put with If-None-Match: *: of two workers that finish the same image at the same \
             moment the later one's result stays",
            "nothing is lost: workers look for a result before they write one; a store that answers 412 closes the gap",
        );
    }
    if store.takes_checksums == Some(false) {
        findings.risk(
            &on,
            "it refuses checksums of uploads, so that none are sent: a body that is damaged on the way is not found",
            "reach it through HTTPS, which finds such damage, or use a newer version of the store",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn only_what_a_store_is_known_to_lack_is_named() {
        let named = |keeps_conditions, takes_checksums| {
            let endpoint_url = "http://store".to_owned();
            let store = Some(Store { endpoint_url, keeps_conditions, takes_checksums });
            let mut findings = Findings::default();
            check(&Observed { store, ..Observed::default() }, &mut findings);
            findings.0.len()
        };
        assert_eq!((named(Some(false), Some(false)), named(Some(true), Some(true)), named(None, None)), (2, 0, 0));
    }
}
