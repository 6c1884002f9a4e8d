//! Everything that happened during an initialisation, so that a caller that lost its connection sees all of it when it
//! comes back.

use std::sync::Arc;

use kubeadm::Kubeconfig;
use tokio::sync::watch;

/// Something to tell the caller. Nothing follows `Success` or `Failure`.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Step(&'static str),
    Success(Arc<Kubeconfig>),
    Failure(String),
}

impl Event {
    fn is_last(&self) -> bool {
        matches!(self, Self::Success(_) | Self::Failure(_))
    }
}

/// The events so far, and whether a caller has seen the last of them.
#[derive(Debug)]
pub(crate) struct InitEvents {
    events: watch::Sender<Vec<Event>>,
    delivered: watch::Sender<bool>,
}

impl InitEvents {
    pub(crate) fn new() -> Self {
        Self {
            events: watch::Sender::new(Vec::new()),
            delivered: watch::Sender::new(false),
        }
    }

    pub(crate) fn add(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    /// Waits for the event with this number; `None` after the last one.
    ///
    /// # Cancel safety
    /// Nothing is lost: the same number gives the same event.
    pub(crate) async fn event(&self, number: usize) -> Option<Event> {
        let mut events = self.events.subscribe();
        let there = |events: &Vec<Event>| events.len() > number || events.last().is_some_and(Event::is_last);
        // The sender is in self, so it is not closed.
        let events = events.wait_for(there).await.ok()?;
        events.get(number).cloned()
    }

    /// Notes that a caller has received everything.
    pub(crate) fn mark_delivered(&self) {
        self.delivered.send_replace(true);
    }

    pub(crate) async fn delivered(&self) {
        // The sender is in self, so it is not closed.
        let _ = self.delivered.subscribe().wait_for(|delivered| *delivered).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn late_callers_see_everything_once() {
        let events = InitEvents::new();
        events.add(Event::Step("one"));
        events.add(Event::Failure("two".into()));
        assert!(matches!(events.event(0).await, Some(Event::Step("one"))));
        assert!(matches!(events.event(1).await, Some(Event::Failure(_))));
        assert!(events.event(2).await.is_none());
    }

    #[tokio::test]
    async fn early_callers_wait() {
        let events = InitEvents::new();
        let (event, ()) = tokio::join!(events.event(0), async { events.add(Event::Step("one")) });
        assert!(matches!(event, Some(Event::Step("one"))));
    }
}
