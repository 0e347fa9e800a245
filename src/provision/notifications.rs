//! Tells people what to do so that they are told of problems.

use super::inventory::FoundResource;
use super::resource::{Kind, Resource, STACK_TAG, UNCONFIRMED};

/// A line for the topic or the budget of the wanted stack.
pub(super) fn note(resource: &Resource, found: Option<&FoundResource>) -> Option<String> {
    match resource.kind {
        Kind::Topic => topic(resource, found),
        Kind::Budget => Some(format!(
            "budget {:?} counts nothing before {STACK_TAG} is a cost allocation tag: activate it once under Billing, Cost allocation tags, a day after the first machine",
            resource.name
        )),
        _ => None,
    }
}

fn topic(resource: &Resource, found: Option<&FoundResource>) -> Option<String> {
    let Some(found) = found else {
        return Some(format!(
            "topic {:?}: AWS sends each address a message with a link, and tells of problems once it was followed",
            resource.name
        ));
    };
    let unconfirmed = found.attributes.get(UNCONFIRMED).filter(|addresses| !addresses.is_empty())?;
    Some(format!(
        "topic {:?} tells nobody at {unconfirmed} before the link in the message of AWS was followed",
        resource.name
    ))
}
