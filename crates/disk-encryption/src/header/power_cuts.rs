//! Every state of a disk that a power cut can leave while its header is written.
//!
//! Between two barriers, a disk may have written any of the sectors it was given, in any order. There are too many subsets to
//! try all. These tests try those in which the order could matter (each prefix, each suffix, each sector alone, each sector
//! missing), and random ones.

use std::io::{Cursor, Write};

use proptest::prelude::*;

use super::tests::header;
use super::unfinished::SECTOR;
use super::*;
use crate::Contents;

/// Large enough for the header with its keyslot in either place, and small enough to look at thousands of times.
const DISK_SIZE: usize = 1 << 20;

type Disk = Vec<u8>;

/// One step: the sectors written between two barriers, with their places.
type Step = Vec<(usize, [u8; SECTOR])>;

/// What was on the disk before, and what must be there afterwards.
struct Case {
    name: &'static str,
    before: Disk,
    header: Header,
}

fn cases() -> Vec<Case> {
    let blank = vec![0; DISK_SIZE];
    let other_disk = "00000000-4f89-11d3-9a0c-0305e82c3301".parse().unwrap();
    let never_joined = written_over(&blank, &header().of_disk(other_disk));
    let interrupted = after(&blank, &steps(&blank, &header().of_disk(other_disk))[..2]);
    // cryptsetup puts the new keyslot behind the old one, so that the old one stays until the new one is there.
    let rekeyed = header().marked(true).with_keyslot_at(header().keyslot_area().end);
    let case = |name, before, header| Case { name, before, header };
    vec![
        case("a blank disk is formatted", blank.clone(), header()),
        case("a disk that never joined is formatted again", never_joined, header()),
        case("an unfinished disk is formatted again", interrupted, header()),
        case("a disk is re-keyed", written_over(&blank, &header()), rekeyed),
    ]
}

/// The steps of writing `header`. Each call of the barrier ends one.
fn steps(before: &[u8], header: &Header) -> Vec<Step> {
    /// Collects the sectors that are written; sectors written in part keep what was there.
    struct Recorder {
        disk: Cursor<Disk>,
        step: Step,
    }
    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let start = usize::try_from(self.disk.position()).unwrap();
            let written = self.disk.write(bytes)?;
            for sector in start / SECTOR..(start + written).div_ceil(SECTOR) {
                let content = &self.disk.get_ref()[sector * SECTOR..][..SECTOR];
                self.step.push((sector, content.try_into().unwrap()));
            }
            Ok(written)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Seek for Recorder {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.disk.seek(to)
        }
    }
    let (disk, mut steps) = (Cursor::new(before.to_vec()), Vec::new());
    let mut recorder = Recorder {
        disk,
        step: Step::new(),
    };
    header
        .write_to(&mut recorder, |recorder| {
            steps.push(std::mem::take(&mut recorder.step));
            Ok(())
        })
        .unwrap();
    assert!(recorder.step.is_empty(), "something is written behind the last barrier");
    steps
}

fn apply<'a>(disk: &mut Disk, sectors: impl IntoIterator<Item = &'a (usize, [u8; SECTOR])>) {
    for (sector, content) in sectors {
        disk[sector * SECTOR..][..SECTOR].copy_from_slice(content);
    }
}

fn after(before: &[u8], steps: &[Step]) -> Disk {
    let mut disk = before.to_vec();
    apply(&mut disk, steps.iter().flatten());
    disk
}

fn written_over(before: &[u8], header: &Header) -> Disk {
    after(before, &steps(before, header))
}

/// What the next boot goes on with: it formats, or, once the header of a known node is complete, waits for its key.
fn must_be_gone_on_with(disk: &Disk, case: &Case, state: &str) {
    let contents = Contents::look_at(&mut Cursor::new(disk)).unwrap();
    let complete = case.header.metadata();
    let goes_on = match contents {
        Contents::Blank | Contents::Unfinished | Contents::Ours { initialised: false, .. } => true,
        Contents::Ours {
            disk: found,
            initialised: true,
        } => {
            complete.is_initialised()
                && found == complete.disk()
                && Header::read_from(&mut Cursor::new(disk), ExpectedDisk::Is(found)).unwrap() == case.header
        }
        Contents::Other(_) => false,
    };
    assert!(goes_on, "{}, {state}: {contents:?}", case.name);
}

#[test]
fn power_cut_at_each_barrier_leaves_a_disk_to_go_on_with() {
    for case in cases() {
        let steps = steps(&case.before, &case.header);
        for done in 0..=steps.len() {
            must_be_gone_on_with(
                &after(&case.before, &steps[..done]),
                &case,
                &format!("{done} steps done"),
            );
        }
        let disk = after(&case.before, &steps);
        let found = Header::read_from(&mut Cursor::new(disk), ExpectedDisk::FirstSeen).unwrap();
        assert_eq!(found, case.header, "{}", case.name);
    }
}

#[test]
fn power_cut_between_barriers_leaves_a_disk_to_go_on_with() {
    for case in cases() {
        let steps = steps(&case.before, &case.header);
        for (number, step) in steps.iter().enumerate() {
            let start = after(&case.before, &steps[..number]);
            let whole = after(&start, std::slice::from_ref(step));
            for (disk, target) in [(&start, &whole), (&whole, &start)] {
                // From nothing of the step to all of it, and from all of it to nothing.
                let (mut beginning, mut alone) = (disk.clone(), disk.clone());
                for (sector, _) in step {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    beginning[range.clone()].copy_from_slice(&target[range.clone()]);
                    alone[range.clone()].copy_from_slice(&target[range.clone()]);
                    let state = format!("step {number}, around sector {sector}");
                    must_be_gone_on_with(&beginning, &case, &state);
                    must_be_gone_on_with(&alone, &case, &state);
                    alone[range.clone()].copy_from_slice(&disk[range]);
                }
            }
        }
    }
}

/// Why the mark is believed even in front of a complete secondary copy that says its node has joined. The old keyslot is
/// overwritten only later, and a host can put that back.
#[test]
fn a_mark_planted_on_a_joined_disk_is_what_a_power_cut_at_the_end_of_re_keying_leaves() {
    let case = cases().pop().expect("the last case re-keys");
    let steps = steps(&case.before, &case.header);
    let mut planted = after(&case.before, &steps);
    assert!(matches!(
        Contents::look_at(&mut Cursor::new(&planted)).unwrap(),
        Contents::Ours { initialised: true, .. }
    ));
    planted[..SECTOR].copy_from_slice(&unfinished::first_sector());
    assert!(planted == after(&case.before, &steps[..steps.len() - 1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn power_cut_after_any_sectors_leaves_a_disk_to_go_on_with(choices in proptest::collection::vec(any::<bool>(), 1000)) {
        for case in cases() {
            let steps = steps(&case.before, &case.header);
            for (number, step) in steps.iter().enumerate() {
                let mut disk = after(&case.before, &steps[..number]);
                let chosen = step.iter().zip(&choices).filter(|(_, chosen)| **chosen);
                apply(&mut disk, chosen.map(|(written, _)| written));
                must_be_gone_on_with(&disk, &case, &format!("step {number}, random sectors"));
            }
        }
    }
}
