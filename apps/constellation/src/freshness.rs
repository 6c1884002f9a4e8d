//! Whether what Kubernetes says of a node is about the machine that runs now.
//!
//! For 40 s after a node's end, Kubernetes goes on calling it ready. Clocks cannot tell, since node and this machine have different
//! ones that the host sets. A node is believed when it is known to be ready in the machine's present start, or when it shows that it is
//! alive in it: while it is watched, it renews its lease or tells of another boot. If an earlier start is known, its boot id must also
//! differ from the one then. That alone is not enough: a guest that reset itself has another one without another start.

use std::collections::BTreeMap;

use cluster_config::Boot;
use cluster_types::{BootId, KubernetesVersion, NodeName};

/// One node as Kubernetes sees it.
pub(crate) struct Seen {
    pub(crate) ready: bool,
    /// Of its kubelet; none if it does not name a release.
    pub(crate) version: Option<KubernetesVersion>,
    /// The boot in which it said so; none if it does not name one.
    pub(crate) boot_id: Option<BootId>,
    /// When it last said that it is alive, by its own clock.
    pub(crate) renewed: Option<String>,
}

/// What only a node that is alive changes: its boot id, and when it renewed its lease.
type SignOfLife = (Option<BootId>, Option<String>);

/// What was known and seen first.
pub(crate) struct Freshness {
    first: Option<BTreeMap<NodeName, SignOfLife>>,
}

impl Freshness {
    /// Begins to watch.
    pub(crate) fn new() -> Self {
        Self { first: None }
    }

    /// Takes a look at all nodes. The first one is what the others are compared with.
    pub(crate) fn look(&mut self, nodes: &BTreeMap<NodeName, Seen>) {
        self.first.get_or_insert_with(|| {
            let nodes = nodes.iter();
            nodes.map(|(name, node)| (name.clone(), sign_of_life(node))).collect()
        });
    }

    /// Whether what is seen of a node is about this start of its machine.
    pub(crate) fn is_fresh(&self, name: &NodeName, node: &Seen, start: &str, known: Option<&Boot>) -> bool {
        match known {
            Some(known) if known.start == start => true,
            Some(known) => is_another(known, node.boot_id) && self.shows_life(name, node),
            None => self.shows_life(name, node),
        }
    }

    fn shows_life(&self, name: &NodeName, node: &Seen) -> bool {
        let first = self.first.as_ref().and_then(|first| first.get(name));
        // A node that was not there before has come by itself.
        first.is_none_or(|first| *first != sign_of_life(node))
    }
}

fn is_another(known: &Boot, boot_id: Option<BootId>) -> bool {
    boot_id.is_some_and(|boot_id| boot_id != known.boot_id)
}

fn sign_of_life(node: &Seen) -> SignOfLife {
    (node.boot_id, node.renewed.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a number.
    fn boot_id(number: u8) -> BootId {
        format!("{number:032}").parse().unwrap()
    }

    fn seen(boot: u8, renewed: &str) -> Seen {
        Seen {
            ready: true,
            version: None,
            boot_id: Some(boot_id(boot)),
            renewed: Some(renewed.to_owned()),
        }
    }

    fn worker() -> NodeName {
        "worker-0".parse().unwrap()
    }

    /// Looks once, and then judges another look.
    fn check(first: Option<Seen>, then: &Seen, start: &str, known: Option<(&str, u8)>) -> bool {
        let mut freshness = Freshness::new();
        freshness.look(&first.into_iter().map(|node| (worker(), node)).collect());
        freshness.look(&BTreeMap::new());
        let known = known.map(|(start, boot)| Boot {
            start: start.to_owned(),
            boot_id: boot_id(boot),
        });
        freshness.is_fresh(&worker(), then, start, known.as_ref())
    }

    #[test]
    fn a_node_whose_machine_was_started_again_is_fresh_in_another_boot_only() {
        let known = Some(("start 1", 1));
        let check = |boot, start| check(Some(seen(1, "10:00")), &seen(boot, "10:00"), start, known);
        assert!(check(1, "start 1"));
        assert!(!check(1, "start 2"));
        assert!(check(2, "start 2"));
    }

    /// The guest reset itself in the start before, or `apply` ended before it remembered the boot.
    #[test]
    fn another_boot_that_was_there_before_the_watch_is_fresh_only_when_the_node_shows_life() {
        let known = Some(("start 1", 1));
        let check = |renewed| check(Some(seen(2, "10:00")), &seen(2, renewed), "start 2", known);
        assert!(!check("10:00"));
        assert!(check("10:10"));
    }

    #[test]
    fn a_node_that_names_no_boot_is_not_in_another() {
        let silent = Seen {
            boot_id: None,
            ..seen(1, "10:10")
        };
        assert!(!check(Some(seen(1, "10:00")), &silent, "start 2", Some(("start 1", 1))));
    }

    /// It may renew its lease before it says in which boot, and then what it says of itself is still the boot before.
    #[test]
    fn a_lease_does_not_make_a_known_boot_fresh() {
        let known = Some(("start 1", 1));
        assert!(!check(Some(seen(1, "10:00")), &seen(1, "10:10"), "start 2", known));
    }

    #[test]
    fn a_node_of_which_no_boot_is_known_is_fresh_when_it_renews_its_lease_or_comes_by_itself() {
        assert!(!check(Some(seen(1, "10:00")), &seen(1, "10:00"), "start 1", None));
        assert!(check(Some(seen(1, "10:00")), &seen(1, "10:10"), "start 1", None));
        assert!(check(None, &seen(1, "10:00"), "start 1", None));
    }
}
