//! What a bench is doing, for the person who waits for it.

pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}
