//! How a machine gets a node name and an address, and how the operator frees them, as steps without I/O. Join services execute them on
//! the API server, and a model checker explores them (`claim/model.rs`).
//!
//! Three records for one node: the machine's says which name and address it claims, and the two others say to which machine a name or an
//! address belongs. The API server lets only one creation of a record succeed, so two machines cannot both be first. A machine that
//! claims both is written down before it is given either: it does not get a second name by asking two join services at once.

#[cfg(test)]
mod model;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use cluster_types::NodeName;

/// What the record of a name is called, before the name.
pub(crate) const NAMES: &str = "node-";
/// Key of the record of a name or address: whose it is.
pub(crate) const IDENTITY: &str = "attestedIdentity";
/// Keys of a machine's record.
const NAME: &str = "name";
const ADDRESS: &str = "address";

/// The content of a record.
pub(crate) type Data = BTreeMap<String, String>;

/// Something that belongs to the machine that claims it first, until the operator frees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Property {
    Name(String),
    Address(String),
}

/// What a machine claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MachineRecord {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// What is to be done with a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Looks whether there is one, and what is in it: [`Event::Read`].
    Read(String),
    /// Gives [`Event::Written`], or [`Event::Exists`] if there is one. A record of a name or address never changes.
    Create {
        record: String,
        data: Data,
        immutable: bool,
    },
    /// Changes a record that was read, if nobody else has changed it since. Gives [`Event::Written`].
    Replace { record: String, data: Data },
    /// Gives [`Event::Written`], also if there is none.
    Delete(String),
}

/// What became of an action. Everything else ends the claim or the release, which can then be made again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Read(Option<Data>),
    Written,
    Exists,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    Do(Action),
    Done,
    Refuse(Refusal),
}

/// A machine does not get what it claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// It belongs to this machine.
    BelongsToAnother { what: Property, owner: String },
    /// The machine has this one.
    HasAnother { what: Property },
    /// Another join service works for the same machine.
    AtTheSameTime,
}

/// A machine's claim of a name and an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    machine: String,
    wanted: MachineRecord,
    stage: ClaimStage,
}

/// What a claim waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ClaimStage {
    OwnRecord,
    /// The owner of the first of these, which it claimed before and wants no more.
    Owners(Vec<Property>),
    Recorded,
    Bound(Property),
    OwnerOf(Property),
}

/// The operator frees a name, and the address of the machine that has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Release {
    name: Property,
    stage: ReleaseStage,
}

/// What a release waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ReleaseStage {
    Owner,
    MachineRecord(String),
    AddressOwner { machine: String, address: Property },
    AddressFreed { machine: String },
    MachineForgotten,
    NameFreed,
}

impl Property {
    pub(crate) fn record(&self) -> String {
        match self {
            Self::Name(name) => format!("{NAMES}{name}"),
            Self::Address(address) => format!("address-{address}"),
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "node name {name}"),
            Self::Address(address) => write!(f, "address {address}"),
        }
    }
}

impl MachineRecord {
    pub(crate) fn new(name: &NodeName, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_string(),
            address: address.to_string(),
        }
    }

    /// Whoever can write the record chooses what is in it.
    pub(crate) fn read(data: &Data) -> Self {
        let text = |key| data.get(key).cloned().unwrap_or_default();
        Self {
            name: text(NAME),
            address: text(ADDRESS),
        }
    }

    fn data(&self) -> Data {
        Data::from([(NAME.into(), self.name.clone()), (ADDRESS.into(), self.address.clone())])
    }

    fn name(&self) -> Property {
        Property::Name(self.name.clone())
    }

    fn address(&self) -> Property {
        Property::Address(self.address.clone())
    }
}

/// The name of a machine's record.
pub(crate) fn record_of(machine: impl fmt::Display) -> String {
    format!("machine-{machine}")
}

/// Whose a name or an address is, as its record says.
pub(crate) fn owner(data: Option<Data>) -> Option<String> {
    data.map(|mut data| data.remove(IDENTITY).unwrap_or_default())
}

impl Claim {
    /// A claim, and what to do first.
    pub(crate) fn begin(machine: String, wanted: MachineRecord) -> (Self, Action) {
        let read = Action::Read(record_of(&machine));
        let claim = Self {
            machine,
            wanted,
            stage: ClaimStage::OwnRecord,
        };
        (claim, read)
    }

    /// 1. The machine's record is made, or changed if the machine never got what it claimed before.
    /// 2. The name is bound to the machine, then the address.
    pub(crate) fn step(&mut self, event: Event) -> Next {
        match (self.stage.clone(), event) {
            (ClaimStage::OwnRecord, Event::Read(None)) => self.record(|record, data| Action::Create {
                record,
                data,
                immutable: false,
            }),
            (ClaimStage::OwnRecord, Event::Read(Some(data))) => {
                let known = MachineRecord::read(&data);
                if known == self.wanted {
                    return self.bind(self.wanted.name());
                }
                let both = [
                    (known.name(), self.wanted.name()),
                    (known.address(), self.wanted.address()),
                ];
                let differ = both.into_iter().filter(|(known, wanted)| known != wanted);
                self.ask_for_owners(differ.map(|(known, _)| known).collect())
            }
            (ClaimStage::Owners(properties), Event::Read(data)) => match owner(data) {
                Some(owner) if owner != self.machine => self.ask_for_owners(properties[1..].to_vec()),
                _ => Next::Refuse(Refusal::HasAnother {
                    what: properties[0].clone(),
                }),
            },
            (ClaimStage::Recorded, Event::Written) => self.bind(self.wanted.name()),
            (ClaimStage::Bound(property), Event::Written) => self.after(&property),
            (ClaimStage::Bound(property), Event::Exists) => {
                let read = Action::Read(property.record());
                self.stage = ClaimStage::OwnerOf(property);
                Next::Do(read)
            }
            (ClaimStage::OwnerOf(what), Event::Read(data)) => match owner(data) {
                Some(owner) if owner == self.machine => self.after(&what),
                owner => Next::Refuse(Refusal::BelongsToAnother {
                    what,
                    owner: owner.unwrap_or_default(),
                }),
            },
            _ => Next::Refuse(Refusal::AtTheSameTime),
        }
    }

    fn ask_for_owners(&mut self, properties: Vec<Property>) -> Next {
        let Some(first) = properties.first() else {
            return self.record(|record, data| Action::Replace { record, data });
        };
        let read = Action::Read(first.record());
        self.stage = ClaimStage::Owners(properties);
        Next::Do(read)
    }

    fn record(&mut self, how: impl FnOnce(String, Data) -> Action) -> Next {
        self.stage = ClaimStage::Recorded;
        Next::Do(how(record_of(&self.machine), self.wanted.data()))
    }

    fn bind(&mut self, property: Property) -> Next {
        let create = Action::Create {
            record: property.record(),
            data: Data::from([(IDENTITY.into(), self.machine.clone())]),
            immutable: true,
        };
        self.stage = ClaimStage::Bound(property);
        Next::Do(create)
    }

    fn after(&mut self, bound: &Property) -> Next {
        match bound {
            Property::Name(_) => self.bind(self.wanted.address()),
            Property::Address(_) => Next::Done,
        }
    }
}

impl Release {
    /// A release, and what to do first.
    pub(crate) fn begin(name: &NodeName) -> (Self, Action) {
        let name = Property::Name(name.to_string());
        let read = Action::Read(name.record());
        let release = Self {
            name,
            stage: ReleaseStage::Owner,
        };
        (release, read)
    }

    /// The address goes, the machine's record, and the name last, so that an interruption is found again.
    pub(crate) fn step(&mut self, event: Event) -> Next {
        match (self.stage.clone(), event) {
            (ReleaseStage::Owner, Event::Read(data)) => match owner(data) {
                None => Next::Done,
                Some(machine) if is_identity(&machine) => {
                    let read = Action::Read(record_of(&machine));
                    self.stage = ReleaseStage::MachineRecord(machine);
                    Next::Do(read)
                }
                Some(_) => self.free_name(),
            },
            (ReleaseStage::MachineRecord(machine), Event::Read(Some(data))) => {
                let record = MachineRecord::read(&data);
                if record.name() != self.name {
                    return self.free_name();
                }
                match record.address.parse::<Ipv4Addr>() {
                    Ok(address) => {
                        let address = Property::Address(address.to_string());
                        let read = Action::Read(address.record());
                        self.stage = ReleaseStage::AddressOwner { machine, address };
                        Next::Do(read)
                    }
                    Err(_) => self.forget(&machine),
                }
            }
            (ReleaseStage::AddressOwner { machine, address }, Event::Read(data)) => {
                if owner(data).as_ref() == Some(&machine) {
                    self.stage = ReleaseStage::AddressFreed { machine };
                    return Next::Do(Action::Delete(address.record()));
                }
                self.forget(&machine)
            }
            (ReleaseStage::AddressFreed { machine }, _) => self.forget(&machine),
            (ReleaseStage::MachineRecord(_) | ReleaseStage::MachineForgotten, _) => self.free_name(),
            (ReleaseStage::NameFreed | ReleaseStage::Owner | ReleaseStage::AddressOwner { .. }, _) => Next::Done,
        }
    }

    fn forget(&mut self, machine: &str) -> Next {
        self.stage = ReleaseStage::MachineForgotten;
        Next::Do(Action::Delete(record_of(machine)))
    }

    fn free_name(&mut self) -> Next {
        self.stage = ReleaseStage::NameFreed;
        Next::Do(Action::Delete(self.name.record()))
    }
}

/// Whoever can write a record chooses what is in it; nothing else becomes the name of an object that is deleted.
fn is_identity(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = MachineRecord::new(&"worker-0".parse().unwrap(), Ipv4Addr::new(10, 42, 2, 100));
        assert_eq!(MachineRecord::read(&record.data()), record);
        let nothing = MachineRecord::read(&Data::new());
        assert!(nothing.name.is_empty() && nothing.address.is_empty());
    }
}
