//! What a bench is doing, for who waits for it.

pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}
