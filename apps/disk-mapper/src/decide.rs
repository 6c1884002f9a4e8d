//! Decides whether a disk is formatted, waited for, or refused. Does no I/O.
//!
//! The rule: a disk is formatted only when the node is new to the cluster, never because it looks empty.
//!
//! # How a node knows that it is new
//! It cannot know by itself. All it remembers from one boot to the next is on the state disk, which the host can blank or
//! restore, and in a TPM whose registers are zero at every boot. So the decision here must not matter for what a *cluster*
//! accepts, and it does not:
//!
//! - Formatting makes a new UUID and a new volume key. The old disk's key is derived from the old UUID, and the cluster
//!   gives it only to the attested identity that first joined with it. Nothing of the old disk can come back under the
//!   new one, and the new one is empty.
//! - A freshly formatted node has no keys, no role and no data. It is part of a cluster only after init or join, where the
//!   operator or the cluster decides with its own memory: a known identity that shows up with another disk can be seen there.
//!
//! So a host that blanks a disk gets what it also gets by making another machine: an empty node that asks to join. It
//! destroys data, as it can by deleting the file. A few bytes are enough for that: the mark in the first sector, or the
//! header from before the node joined. Nothing on a disk tells them from the truth, and refusing them would strand nodes
//! whose power went (`docs/adr/0006-format-of-the-state-disk.md`). What the host must not get is a node that trusts foreign
//! data, and what merely damages a header must not cost a node its data. Hence the three actions:
//!
//! | The disk shows | Means | Action |
//! |---|---|---|
//! | zeros at both ends | made for a new node | format |
//! | the mark of an unfinished header, exactly | a boot ended while it formatted or re-keyed | format |
//! | our shape, not marked as initialised | a boot ended between format and join; its key died with that boot | format |
//! | our shape, marked as initialised | a known node | wait for its key |
//! | anything else: damaged, foreign, or shaped by the host | unknown | refuse, with the reason |
//!
//! The predecessor formatted in all cases except that of a known node's disk. There, a header damaged in one byte cost the node its data.

use cluster_types::DiskUuid;
use disk_encryption::Contents;
use disk_encryption::header::HeaderError;

/// What to do with a disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Format the disk, for a new node.
    Format(NewNode),
    /// Open it, as soon as its key is there.
    WaitForKey(DiskUuid),
}

/// Why a node counts as new.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NewNode {
    /// There is nothing on its disk.
    BlankDisk,
    /// The power went while its disk got a header.
    UnfinishedHeader,
    /// It was formatted and did not come as far as joining.
    NeverJoined(DiskUuid),
}

/// A disk is left untouched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not blank and not ours.
    #[error(
        "the state disk is neither blank nor one of ours, and is left as it is; \
         if the node is new, give it a blank disk"
    )]
    Unknown(#[source] HeaderError),
    /// Too small to be useful.
    #[error("the state disk has {found} bytes, but at least {least} are required")]
    TooSmall {
        /// Its size in bytes.
        found: u64,
        /// What a node needs in bytes.
        least: u64,
    },
}

/// Container images alone need more. With this limit, the failure is here and not inside mkfs.
const MIN_SIZE: u64 = 1 << 30;

/// Decides what to do with the state disk.
pub(crate) fn decide(contents: Contents, size: u64) -> Result<Action, Refusal> {
    if size < MIN_SIZE {
        return Err(Refusal::TooSmall {
            found: size,
            least: MIN_SIZE,
        });
    }
    match contents {
        Contents::Blank => Ok(Action::Format(NewNode::BlankDisk)),
        Contents::Unfinished => Ok(Action::Format(NewNode::UnfinishedHeader)),
        Contents::Ours {
            disk,
            initialised: false,
        } => Ok(Action::Format(NewNode::NeverJoined(disk))),
        Contents::Ours {
            disk,
            initialised: true,
        } => Ok(Action::WaitForKey(disk)),
        Contents::Other(reason) => Err(Refusal::Unknown(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 20 << 30;

    fn disk() -> DiskUuid {
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301".parse().unwrap()
    }

    #[test]
    fn formats_blank_disk() {
        assert_eq!(
            decide(Contents::Blank, SIZE).unwrap(),
            Action::Format(NewNode::BlankDisk)
        );
    }

    #[test]
    fn formats_disk_with_an_unfinished_header() {
        assert_eq!(
            decide(Contents::Unfinished, SIZE).unwrap(),
            Action::Format(NewNode::UnfinishedHeader)
        );
    }

    #[test]
    fn formats_disk_that_never_joined() {
        let contents = Contents::Ours {
            disk: disk(),
            initialised: false,
        };
        assert_eq!(
            decide(contents, SIZE).unwrap(),
            Action::Format(NewNode::NeverJoined(disk()))
        );
    }

    #[test]
    fn waits_for_the_key_of_a_known_disk() {
        let contents = Contents::Ours {
            disk: disk(),
            initialised: true,
        };
        assert_eq!(decide(contents, SIZE).unwrap(), Action::WaitForKey(disk()));
    }

    #[test]
    fn refuses_everything_else_with_its_reason() {
        let refusal = decide(Contents::Other(HeaderError::IntegrityMissing), SIZE).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Unknown(HeaderError::IntegrityMissing)),
            "{refusal:?}"
        );
    }

    #[test]
    fn refuses_disk_that_is_too_small() {
        let refusal = decide(Contents::Blank, MIN_SIZE - 1).unwrap_err();
        assert!(matches!(refusal, Refusal::TooSmall { .. }), "{refusal:?}");
    }
}
