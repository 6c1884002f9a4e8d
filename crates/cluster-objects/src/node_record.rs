use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use attestation::AttestedIdentity;
use cluster_types::NodeName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Error};

use crate::Cluster;

/// The namespace that holds only records of which machine a node name or an address belongs to.
pub const RECORDS_NAMESPACE: &str = "constellation-nodes";

/// What the record of a name is called, before the name.
const NAMES: &str = "node-";
/// Key of the record of a name or address: whose it is.
const IDENTITY: &str = "attestedIdentity";
/// Keys of a machine's record.
const NAME: &str = "name";
const ADDRESS: &str = "address";

/// A node name or address belongs to another machine, or its record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NodeRecordError {
    /// A name or an address belongs to another machine.
    #[error("{what} belongs to machine {owner}, but machine {attested} attested")]
    BelongsToAnother {
        /// The node name or the address.
        what: String,
        /// The machine that claimed it first.
        owner: String,
        /// The machine that claims it now.
        attested: AttestedIdentity,
    },
    /// The machine has another name or address already.
    #[error("machine {attested} has {what}")]
    HasAnother {
        /// The name or address that it claimed first.
        what: String,
        /// The machine that claims a second one.
        attested: AttestedIdentity,
    },
    /// The machine has claimed no name.
    #[error("machine {0} has no name")]
    NoName(AttestedIdentity),
    /// The API server failed.
    #[error("the record {record} could not be {action}")]
    Api {
        /// The record's name.
        record: String,
        /// What was attempted.
        action: &'static str,
        /// What the API server answered, or why it could not be reached.
        #[source]
        source: Box<Error>,
    },
}

/// Something that belongs for good to the machine that claims it first.
#[derive(PartialEq)]
enum Property {
    Name(String),
    Address(String),
}

impl Property {
    fn record(&self) -> String {
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

/// What a machine has.
#[derive(Debug, PartialEq, Eq)]
struct MachineRecord {
    name: String,
    address: String,
}

impl MachineRecord {
    fn new(name: &NodeName, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_string(),
            address: address.to_string(),
        }
    }

    /// Whoever can write the record chooses what is in it.
    fn read(object: &ConfigMap) -> Self {
        let text = |key| object.data.as_ref().and_then(|data| data.get(key)).cloned();
        let text = |key| text(key).unwrap_or_default();
        Self {
            name: text(NAME),
            address: text(ADDRESS),
        }
    }

    fn data(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(NAME.into(), self.name.clone()), (ADDRESS.into(), self.address.clone())])
    }
}

impl Cluster {
    /// Gives node name and address to the machine that claims them first. A machine has one of each.
    ///
    /// # Errors
    /// When one belongs to another machine, the machine has another one, or the API server fails.
    pub async fn claim(
        &self,
        name: &NodeName,
        address: Ipv4Addr,
        machine: AttestedIdentity,
    ) -> Result<(), NodeRecordError> {
        let record = record_of(machine);
        let (wanted_name, wanted_address) = (Property::Name(name.to_string()), Property::Address(address.to_string()));
        match self.get(&record).await? {
            None => {
                let object = object(&record, &MachineRecord::new(name, address).data());
                let created = self.records().create(&PostParams::default(), &object).await;
                created.map_err(|error| api_error(&record, "created", error))?;
            }
            Some(mut object) => {
                let known = MachineRecord::read(&object);
                self.must_be_free_of(&Property::Name(known.name.clone()), &wanted_name, machine)
                    .await?;
                self.must_be_free_of(&Property::Address(known.address.clone()), &wanted_address, machine)
                    .await?;
                let claimed = MachineRecord::new(name, address);
                if claimed != known {
                    object.data = Some(claimed.data());
                    self.replace(&record, &object).await?;
                }
            }
        }
        self.bind(&wanted_name, machine).await?;
        self.bind(&wanted_address, machine).await
    }

    /// Checks that this machine has a node name.
    ///
    /// # Errors
    /// When it has claimed none, the name is another machine's, or the API server fails.
    pub async fn must_have_a_name(&self, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let object = self.get(&record_of(machine)).await?;
        let record = MachineRecord::read(&object.ok_or(NodeRecordError::NoName(machine))?);
        let name = Property::Name(record.name);
        match self.owner_of(&name).await? {
            Some(owner) if owner == machine.to_string() => Ok(()),
            Some(owner) => Err(NodeRecordError::BelongsToAnother {
                what: name.to_string(),
                owner,
                attested: machine,
            }),
            None => Err(NodeRecordError::NoName(machine)),
        }
    }

    /// Whether a machine has claimed this node name.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn has_node(&self, name: &NodeName) -> Result<bool, NodeRecordError> {
        let owner = self.owner_of(&Property::Name(name.to_string())).await?;
        Ok(owner.is_some())
    }

    /// The address at which the kubelet of this node serves, if a machine has both.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn address_of(&self, name: &NodeName) -> Result<Option<Ipv4Addr>, NodeRecordError> {
        let Some(machine) = self.owner_of(&Property::Name(name.to_string())).await? else {
            return Ok(None);
        };
        let object = self.get(&record_of(&machine)).await?;
        let record = MachineRecord::read(&object.unwrap_or_default());
        let owner = self.owner_of(&Property::Address(record.address.clone())).await?;
        let is_its_own = record.name == name.as_str() && owner.as_deref() == Some(&machine);
        Ok(is_its_own.then(|| record.address.parse().ok()).flatten())
    }

    /// The machine of each node name, as its record says.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn owners(&self) -> Result<BTreeMap<String, String>, NodeRecordError> {
        let listed = self.records().list(&ListParams::default()).await;
        let listed = listed.map_err(|error| api_error("of every name", "read", error))?;
        let owner = |object: ConfigMap| {
            let name = object.metadata.name?.strip_prefix(NAMES)?.to_owned();
            Some((name, object.data.unwrap_or_default().remove(IDENTITY)?))
        };
        Ok(listed.items.into_iter().filter_map(owner).collect())
    }

    /// Frees a node name, and the address of the machine that has it: another machine may claim them. The operator has removed that
    /// machine. Its name goes last, so that an interruption is found again.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn release(&self, name: &NodeName) -> Result<(), NodeRecordError> {
        let property = Property::Name(name.to_string());
        let Some(machine) = self.owner_of(&property).await? else {
            return Ok(());
        };
        if is_identity(&machine) {
            self.release_machine(&machine).await?;
        }
        self.delete(&property.record()).await
    }

    async fn release_machine(&self, machine: &str) -> Result<(), NodeRecordError> {
        let record = record_of(machine);
        let Some(object) = self.get(&record).await? else {
            return Ok(());
        };
        if let Ok(address) = MachineRecord::read(&object).address.parse::<Ipv4Addr>() {
            let address = Property::Address(address.to_string());
            if self.owner_of(&address).await?.as_deref() == Some(machine) {
                self.delete(&address.record()).await?;
            }
        }
        self.delete(&record).await
    }

    async fn delete(&self, record: &str) -> Result<(), NodeRecordError> {
        match self.records().delete(record, &DeleteParams::default()).await {
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).map_err(|error| api_error(record, "deleted", error)),
        }
    }

    /// The API server lets only one creation of a name succeed, so two machines cannot both be first.
    async fn bind(&self, property: &Property, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let record = property.record();
        let data = BTreeMap::from([(IDENTITY.to_owned(), machine.to_string())]);
        let mut object = object(&record, &data);
        object.immutable = Some(true);
        match self.records().create(&PostParams::default(), &object).await {
            Ok(_) => return Ok(()),
            Err(Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(api_error(&record, "created", error)),
        }
        match self.owner_of(property).await? {
            Some(owner) if owner == machine.to_string() => Ok(()),
            owner => Err(NodeRecordError::BelongsToAnother {
                what: property.to_string(),
                owner: owner.unwrap_or_default(),
                attested: machine,
            }),
        }
    }

    /// A machine may take another name or address only if it never got the one that it asked for first.
    async fn must_be_free_of(
        &self,
        known: &Property,
        wanted: &Property,
        machine: AttestedIdentity,
    ) -> Result<(), NodeRecordError> {
        if known == wanted {
            return Ok(());
        }
        match self.owner_of(known).await? {
            Some(owner) if owner != machine.to_string() => Ok(()),
            _ => Err(NodeRecordError::HasAnother {
                what: known.to_string(),
                attested: machine,
            }),
        }
    }

    async fn owner_of(&self, property: &Property) -> Result<Option<String>, NodeRecordError> {
        let record = self.get(&property.record()).await?;
        Ok(record.map(|object| object.data.unwrap_or_default().remove(IDENTITY).unwrap_or_default()))
    }

    async fn get(&self, record: &str) -> Result<Option<ConfigMap>, NodeRecordError> {
        let found = self.records().get_opt(record).await;
        found.map_err(|error| api_error(record, "read", error))
    }

    /// The object's resourceVersion makes this fail if another join service was faster.
    async fn replace(&self, record: &str, object: &ConfigMap) -> Result<(), NodeRecordError> {
        let replaced = self.records().replace(record, &PostParams::default(), object).await;
        replaced.map(drop).map_err(|error| api_error(record, "updated", error))
    }

    fn records(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), RECORDS_NAMESPACE)
    }
}

/// Whoever can write a record chooses what is in it; nothing else becomes the name of an object that is deleted.
fn is_identity(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn record_of(machine: impl fmt::Display) -> String {
    format!("machine-{machine}")
}

fn object(record: &str, data: &BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(record.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data.clone()),
        ..ConfigMap::default()
    }
}

fn api_error(record: &str, action: &'static str, error: Error) -> NodeRecordError {
    NodeRecordError::Api {
        record: record.to_owned(),
        action,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> MachineRecord {
        MachineRecord::new(&"worker-0".parse().unwrap(), Ipv4Addr::new(10, 42, 2, 100))
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = new();
        assert_eq!(MachineRecord::read(&object("machine", &record.data())), record);
    }

    #[test]
    fn a_record_without_content_gives_nothing() {
        let record = MachineRecord::read(&ConfigMap::default());
        assert!(record.name.is_empty() && record.address.is_empty());
    }
}
