use std::collections::BTreeMap;
use std::fmt;

use attestation::AttestedIdentity;
use cluster_types::{DiskUuid, NodeName};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Error};

use crate::Cluster;

/// The namespace that holds only records of which machine a disk or a node name belongs to.
pub const RECORDS_NAMESPACE: &str = "constellation-nodes";

const IDENTITY: &str = "attestedIdentity";

/// A disk or node name belongs to another machine, or its record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NodeRecordError {
    /// It belongs to another machine.
    #[error("{what} belongs to machine {owner}, but machine {attested} attested")]
    BelongsToAnother {
        /// The disk or the node name.
        what: String,
        /// The machine that it was first bound to.
        owner: String,
        /// The machine that claims it now.
        attested: AttestedIdentity,
    },
    /// It was never bound to a machine.
    #[error("{0} is unknown to this cluster")]
    Unknown(String),
    /// The API server failed.
    #[error("the record of {what} could not be {action}")]
    Api {
        /// The disk or the node name.
        what: String,
        /// What was attempted.
        action: &'static str,
        /// What the API server answered, or why it could not be reached.
        #[source]
        source: Box<Error>,
    },
}

/// Something that belongs to one machine for good.
enum Property<'a> {
    Disk(DiskUuid),
    Name(&'a NodeName),
}

impl Property<'_> {
    fn object_name(&self) -> String {
        match self {
            Self::Disk(disk) => format!("disk-{disk}"),
            Self::Name(name) => format!("node-{name}"),
        }
    }
}

impl fmt::Display for Property<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => write!(f, "disk {disk}"),
            Self::Name(name) => write!(f, "node name {name}"),
        }
    }
}

impl Cluster {
    /// Gives a disk to the machine that claims it first. Only the same machine can claim it again.
    ///
    /// # Errors
    /// When it belongs to another machine, or the API server fails.
    pub async fn bind_disk(&self, disk: DiskUuid, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        self.bind(&Property::Disk(disk), machine).await
    }

    /// Gives a node name to the machine that claims it first. Only the same machine can claim it again.
    ///
    /// # Errors
    /// When it belongs to another machine, or the API server fails.
    pub async fn bind_name(&self, name: &NodeName, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        self.bind(&Property::Name(name), machine).await
    }

    /// Checks that a disk was bound before, to this machine.
    ///
    /// # Errors
    /// When it was not, or the API server fails.
    pub async fn check_disk(&self, disk: DiskUuid, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        self.check(&Property::Disk(disk), machine).await
    }

    /// The API server lets only one creation of a name succeed, so two machines cannot both be first.
    async fn bind(&self, property: &Property<'_>, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let record = ConfigMap {
            metadata: ObjectMeta {
                name: Some(property.object_name()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(IDENTITY.into(), machine.to_string())])),
            immutable: Some(true),
            ..ConfigMap::default()
        };
        match self.records().create(&PostParams::default(), &record).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.reason == "AlreadyExists" => self.check(property, machine).await,
            Err(error) => Err(api_error(property, "created", error)),
        }
    }

    async fn check(&self, property: &Property<'_>, machine: AttestedIdentity) -> Result<(), NodeRecordError> {
        let record = self
            .records()
            .get_opt(&property.object_name())
            .await
            .map_err(|error| api_error(property, "read", error))?
            .ok_or_else(|| NodeRecordError::Unknown(property.to_string()))?;
        let owner = record.data.unwrap_or_default().remove(IDENTITY).unwrap_or_default();
        if owner == machine.to_string() {
            Ok(())
        } else {
            Err(NodeRecordError::BelongsToAnother {
                what: property.to_string(),
                owner,
                attested: machine,
            })
        }
    }

    fn records(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), RECORDS_NAMESPACE)
    }
}

fn api_error(property: &Property<'_>, action: &'static str, error: Error) -> NodeRecordError {
    NodeRecordError::Api {
        what: property.to_string(),
        action,
        source: Box::new(error),
    }
}
