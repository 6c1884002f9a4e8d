//! Every order in which join services claim names for machines while the operator frees one, each of them interrupted at any point.

use std::collections::BTreeMap;

use stateright::{Checker, Model, Property as Rule};

use super::{Action, Claim, Data, Event, MachineRecord, Next, Property, Release, owner, record_of};

const FIRST: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const NAMES: [&str; 2] = ["worker-0", "worker-1"];
const ADDRESSES: [&str; 2] = ["10.42.2.100", "10.42.2.101"];

/// What somebody wants who works on the records.
#[derive(Clone, Copy)]
enum Task {
    /// A machine wants the name and the address with these numbers.
    Claim(&'static str, usize, usize),
    /// The operator frees the name with this number.
    Release(usize),
}

struct Records {
    tasks: Vec<Task>,
}

/// A record, with a version that changes with its content.
type Record = (Data, u8);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    records: BTreeMap<String, Record>,
    workers: Vec<Worker>,
    /// Names that a machine was told it has, in the order in which it was told, until the operator frees them.
    told: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Worker {
    /// With what it does next, and the versions that it has read.
    Claiming(Claim, Action, BTreeMap<String, u8>),
    Releasing(Release, Action),
    Ended,
}

/// Which of the workers does what it does next, or is interrupted.
#[derive(Clone, Debug, PartialEq)]
enum Happens {
    Step(usize),
    Crash(usize),
}

fn begin(task: Task) -> Worker {
    match task {
        Task::Claim(machine, name, address) => {
            let wanted = MachineRecord {
                name: NAMES[name].to_owned(),
                address: ADDRESSES[address].to_owned(),
            };
            let (claim, action) = Claim::begin(machine.to_owned(), wanted);
            Worker::Claiming(claim, action, BTreeMap::new())
        }
        Task::Release(name) => {
            let (release, action) = Release::begin(&NAMES[name].parse().unwrap());
            Worker::Releasing(release, action)
        }
    }
}

impl State {
    /// As the API server does it.
    fn execute(&mut self, action: &Action, read: &mut BTreeMap<String, u8>) -> Option<Event> {
        match action {
            Action::Read(record) => {
                let found = self.records.get(record).cloned();
                if let Some((_, version)) = &found {
                    read.insert(record.clone(), *version);
                }
                Some(Event::Read(found.map(|(data, _)| data)))
            }
            Action::Create { record, data, .. } => {
                if self.records.contains_key(record) {
                    return Some(Event::Exists);
                }
                self.records.insert(record.clone(), (data.clone(), 1));
                Some(Event::Written)
            }
            Action::Replace { record, data } => match self.records.get_mut(record) {
                Some((known, version)) if read.get(record) == Some(version) => {
                    known.clone_from(data);
                    *version += 1;
                    Some(Event::Written)
                }
                // A conflict ends the claim.
                _ => None,
            },
            Action::Delete(record) => {
                self.records.remove(record);
                Some(Event::Written)
            }
        }
    }

    fn step(&mut self, index: usize) {
        let worker = std::mem::replace(&mut self.workers[index], Worker::Ended);
        self.workers[index] = match worker {
            Worker::Ended => Worker::Ended,
            Worker::Claiming(mut claim, action, mut read) => {
                let event = self.execute(&action, &mut read);
                match event.map(|event| claim.step(event)) {
                    Some(Next::Do(action)) => Worker::Claiming(claim, action, read),
                    Some(Next::Done) => {
                        self.told.push((claim.machine.clone(), claim.wanted.name.clone()));
                        Worker::Ended
                    }
                    Some(Next::Refuse(_)) | None => Worker::Ended,
                }
            }
            Worker::Releasing(mut release, action) => {
                if let Action::Delete(record) = &action {
                    self.told
                        .retain(|(_, name)| Property::Name(name.clone()).record() != *record);
                }
                match self
                    .execute(&action, &mut BTreeMap::new())
                    .map(|event| release.step(event))
                {
                    Some(Next::Do(action)) => Worker::Releasing(release, action),
                    _ => Worker::Ended,
                }
            }
        };
    }

    /// As [`Cluster::has_node`](crate::Cluster::has_node) decides whose certificates are signed.
    fn has(&self, machine: &str, name: &str) -> bool {
        let data = |record: &str| self.records.get(record).map(|(data, _)| data.clone());
        let owns = owner(data(&Property::Name(name.to_owned()).record())).as_deref() == Some(machine);
        let own = data(&record_of(machine)).map(|data| MachineRecord::read(&data));
        owns && own.is_some_and(|own| own.name == name)
    }
}

impl Model for Records {
    type State = State;
    type Action = Happens;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            records: BTreeMap::new(),
            workers: self.tasks.iter().map(|task| begin(*task)).collect(),
            told: Vec::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Happens>) {
        for (index, worker) in state.workers.iter().enumerate() {
            if *worker != Worker::Ended {
                actions.extend([Happens::Step(index), Happens::Crash(index)]);
            }
        }
    }

    fn next_state(&self, state: &State, action: Happens) -> Option<State> {
        let mut next = state.clone();
        match action {
            Happens::Step(index) => next.step(index),
            Happens::Crash(index) => next.workers[index] = Worker::Ended,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Rule<Self>> {
        vec![
            Rule::always("a name has one machine", |_, state: &State| {
                NAMES.iter().all(|name| {
                    let told = state.told.iter().filter(|(_, told)| told == name);
                    let machines: std::collections::BTreeSet<_> = told.map(|(machine, _)| machine).collect();
                    machines.len() <= 1
                })
            }),
            Rule::always("a machine has one name", |_, state: &State| {
                [FIRST, SECOND]
                    .iter()
                    .all(|machine| NAMES.iter().filter(|name| state.has(machine, name)).count() <= 1)
            }),
            Rule::sometimes("the first machine gets its name", |_, state: &State| {
                state.has(FIRST, NAMES[0])
            }),
            Rule::sometimes(
                "somebody gets the name once it is free",
                |model: &Records, state: &State| {
                    let freed = model.tasks.iter().any(|task| matches!(task, Task::Release(_)));
                    !freed || state.has(SECOND, NAMES[0])
                },
            ),
        ]
    }
}

fn check(tasks: &[Task]) {
    let model = Records { tasks: tasks.to_vec() };
    let checker = model.checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn two_machines_want_one_name_and_one_of_them_asks_two_join_services() {
    check(&[
        Task::Claim(FIRST, 0, 0),
        Task::Claim(FIRST, 0, 0),
        Task::Claim(SECOND, 0, 0),
        Task::Release(0),
    ]);
}

#[test]
fn a_machine_wants_two_names_at_once_while_the_first_is_freed() {
    check(&[
        Task::Claim(FIRST, 0, 0),
        Task::Claim(FIRST, 1, 1),
        Task::Claim(SECOND, 0, 0),
        Task::Release(0),
    ]);
}

/// The trace that the model found: a machine that was refused a name takes another one, and the first join service still works for it
/// when the operator frees the name. The name's record is the machine's then, and its own record says another: it has one name.
#[test]
fn a_name_without_the_machines_own_record_is_nobodys() {
    let mut state = Records { tasks: vec![] }.init_states().remove(0);
    let name = Property::Name(NAMES[0].to_owned()).record();
    let bound = Data::from([(super::IDENTITY.to_owned(), FIRST.to_owned())]);
    state.records.insert(name, (bound, 1));
    let other = MachineRecord {
        name: NAMES[1].to_owned(),
        address: ADDRESSES[1].to_owned(),
    };
    state.records.insert(record_of(FIRST), (other.data(), 1));
    assert!(!state.has(FIRST, NAMES[0]));
}
