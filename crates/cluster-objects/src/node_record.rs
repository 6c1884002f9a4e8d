use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use attestation::AttestedIdentity;
use cluster_types::NodeName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Error};

use crate::Cluster;
use crate::claim::{
    Action, Claim, Data, Event, MachineRecord, NAMES, Next, Property, Refusal, Release, owner, record_of,
};

/// The namespace that holds only records of which machine a node name or an address belongs to.
pub const RECORDS_NAMESPACE: &str = "constellation-nodes";

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
    /// Another join service works for the same machine.
    #[error("another join service is giving machine {0} its name")]
    AtTheSameTime(AttestedIdentity),
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

/// Whether a bootstrap token is good for a certificate request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// It is used for this one.
    First,
    /// It was used for another one.
    Another,
    /// No machine has the node's name.
    NoNode,
}

/// Key of the tokens that a machine has used, in its record: the id of each and the request for which, the last one at the end.
const TOKENS_USED: &str = "tokensUsed";
/// How many of them are kept. A token lives for a quarter of an hour.
const TOKENS: usize = 16;

/// What a list of tokens says of one.
enum Use {
    /// It is in there, and whether with this request.
    By(bool),
    /// It is not; the list with it.
    New(String),
}

fn used(list: &str, token: &str, request: &str) -> Use {
    let mut uses: Vec<_> = list.split_whitespace().collect();
    let of_token = uses.iter().find_map(|used| used.strip_prefix(token)?.strip_prefix('='));
    if let Some(known) = of_token {
        return Use::By(known == request);
    }
    let new = format!("{token}={request}");
    uses.push(&new);
    let from = uses.len().saturating_sub(TOKENS);
    Use::New(uses[from..].join(" "))
}

impl NodeRecordError {
    fn refused(refusal: Refusal, attested: AttestedIdentity) -> Self {
        match refusal {
            Refusal::BelongsToAnother { what, owner } => Self::BelongsToAnother {
                what: what.to_string(),
                owner,
                attested,
            },
            Refusal::HasAnother { what } => Self::HasAnother {
                what: what.to_string(),
                attested,
            },
            Refusal::AtTheSameTime => Self::AtTheSameTime(attested),
        }
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
        let wanted = MachineRecord::new(name, address);
        let (mut claim, first) = Claim::begin(machine.to_string(), wanted);
        let ended = self.execute(first, |event| claim.step(event)).await?;
        ended.map_err(|refusal| NodeRecordError::refused(refusal, machine))
    }

    /// Frees a node name, and the address of the machine that has it: another machine may claim them. The operator has removed that
    /// machine.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn release(&self, name: &NodeName) -> Result<(), NodeRecordError> {
        let (mut release, first) = Release::begin(name);
        // A release refuses nothing.
        let ended = self.execute(first, |event| release.step(event)).await?;
        drop(ended);
        Ok(())
    }

    /// Checks that this machine has a node name.
    ///
    /// # Errors
    /// When it has claimed none, the name is another machine's, or the API server fails.
    pub async fn must_have_a_name(&self, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let record = self.machine_record(&machine.to_string()).await?;
        let name = Property::Name(record.ok_or(NodeRecordError::NoName(machine))?.name);
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

    /// Whether a machine has this node name: the name's record and the machine's name each other.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn has_node(&self, name: &NodeName) -> Result<bool, NodeRecordError> {
        Ok(self.machine_with(name).await?.is_some())
    }

    /// Uses up the bootstrap token with this id for this certificate request of a node. The record of the node's machine says so, until its
    /// node has used many more.
    ///
    /// # Errors
    /// When the API server fails, or the record has changed meanwhile.
    pub async fn use_token(&self, name: &NodeName, token: &str, request: &str) -> Result<TokenUse, NodeRecordError> {
        let Some(machine) = self.owner_of(&Property::Name(name.to_string())).await? else {
            return Ok(TokenUse::NoNode);
        };
        let record = record_of(&machine);
        // One object is looked at and replaced: whatever changes it meanwhile makes the replacement fail.
        let mut object = self.get(&record).await?.unwrap_or_default();
        let data = object.data.get_or_insert_default();
        if MachineRecord::read(data).name != name.as_str() {
            return Ok(TokenUse::NoNode);
        }
        match used(data.get(TOKENS_USED).map_or("", String::as_str), token, request) {
            Use::By(same) => Ok(if same { TokenUse::First } else { TokenUse::Another }),
            Use::New(used) => {
                data.insert(TOKENS_USED.to_owned(), used);
                let replaced = self.records().replace(&record, &PostParams::default(), &object).await;
                written(replaced, &record, "updated").map(|_| TokenUse::First)
            }
        }
    }

    /// The address at which the kubelet of this node serves, if a machine has both.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn address_of(&self, name: &NodeName) -> Result<Option<Ipv4Addr>, NodeRecordError> {
        let Some((machine, record)) = self.machine_with(name).await? else {
            return Ok(None);
        };
        let owner = self.owner_of(&Property::Address(record.address.clone())).await?;
        Ok((owner == Some(machine)).then(|| record.address.parse().ok()).flatten())
    }

    /// The machine of each node name, as its record says.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn owners(&self) -> Result<BTreeMap<String, String>, NodeRecordError> {
        let listed = self.records().list(&ListParams::default()).await;
        let listed = listed.map_err(|error| api_error("of every name", "read", error))?;
        let of_name = |object: ConfigMap| {
            let name = object.metadata.name?.strip_prefix(NAMES)?.to_owned();
            Some((name, owner(object.data)?))
        };
        Ok(listed.items.into_iter().filter_map(of_name).collect())
    }

    /// Does one thing after another, as each step says.
    async fn execute(
        &self,
        first: Action,
        mut step: impl FnMut(Event) -> Next,
    ) -> Result<Result<(), Refusal>, NodeRecordError> {
        let (mut action, mut read) = (first, BTreeMap::new());
        loop {
            let event = self.perform(action, &mut read).await?;
            action = match step(event) {
                Next::Do(action) => action,
                Next::Done => return Ok(Ok(())),
                Next::Refuse(refusal) => return Ok(Err(refusal)),
            };
        }
    }

    /// The API server lets only one creation of a record succeed, and no replacement of what was changed since it was read.
    async fn perform(&self, action: Action, read: &mut BTreeMap<String, ConfigMap>) -> Result<Event, NodeRecordError> {
        match action {
            Action::Read(record) => {
                let found = self.get(&record).await?;
                let data = found.as_ref().map(|object| object.data.clone().unwrap_or_default());
                if let Some(object) = found {
                    read.insert(record, object);
                }
                Ok(Event::Read(data))
            }
            Action::Create {
                record,
                data,
                immutable,
            } => {
                let object = object(&record, data, immutable);
                match self.records().create(&PostParams::default(), &object).await {
                    Err(Error::Api(status)) if status.reason == "AlreadyExists" => Ok(Event::Exists),
                    created => written(created, &record, "created"),
                }
            }
            Action::Replace { record, data } => {
                let mut object = read.remove(&record).unwrap_or_default();
                object.data = Some(data);
                let replaced = self.records().replace(&record, &PostParams::default(), &object).await;
                written(replaced, &record, "updated")
            }
            Action::Delete(record) => match self.records().delete(&record, &DeleteParams::default()).await {
                Err(Error::Api(status)) if status.code == 404 => Ok(Event::Written),
                deleted => written(deleted, &record, "deleted"),
            },
        }
    }

    async fn machine_with(&self, name: &NodeName) -> Result<Option<(String, MachineRecord)>, NodeRecordError> {
        let Some(machine) = self.owner_of(&Property::Name(name.to_string())).await? else {
            return Ok(None);
        };
        let record = self.machine_record(&machine).await?;
        Ok(record
            .filter(|record| record.name == name.as_str())
            .map(|record| (machine, record)))
    }

    async fn machine_record(&self, machine: &str) -> Result<Option<MachineRecord>, NodeRecordError> {
        let object = self.get(&record_of(machine)).await?;
        Ok(object.map(|object| MachineRecord::read(&object.data.unwrap_or_default())))
    }

    async fn owner_of(&self, property: &Property) -> Result<Option<String>, NodeRecordError> {
        let record = self.get(&property.record()).await?;
        Ok(owner(record.map(|object| object.data.unwrap_or_default())))
    }

    async fn get(&self, record: &str) -> Result<Option<ConfigMap>, NodeRecordError> {
        let found = self.records().get_opt(record).await;
        found.map_err(|error| api_error(record, "read", error))
    }

    fn records(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), RECORDS_NAMESPACE)
    }
}

fn object(record: &str, data: Data, immutable: bool) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(record.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        immutable: immutable.then_some(true),
        ..ConfigMap::default()
    }
}

fn written<T>(result: Result<T, Error>, record: &str, action: &'static str) -> Result<Event, NodeRecordError> {
    result
        .map(|_| Event::Written)
        .map_err(|error| api_error(record, action, error))
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

    #[test]
    fn a_token_is_used_once_and_lists_stay_short() {
        let mut list = String::new();
        for number in 0..3 * TOKENS {
            let (token, request) = (format!("token{number}"), format!("request-{number}"));
            let Use::New(longer) = used(&list, &token, &request) else {
                panic!("{token} in {list}")
            };
            list = longer;
            assert!(matches!(used(&list, &token, &request), Use::By(true)));
            assert!(matches!(used(&list, &token, "another"), Use::By(false)));
            // Its beginning is another token.
            assert!(matches!(used(&list, "toke", &request), Use::New(_)));
        }
        assert_eq!(list.split(' ').count(), TOKENS);
    }
}
