use std::net::Ipv4Addr;

use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_types::{NodeName, NodeRole, ParseNodeNameError, ParseNodeRoleError};
use serde::Deserialize;

use crate::{ApiEndpoint, NotPrivate, PrivateAddress};

/// More nodes than this are no cluster of ours.
const MAX_PEERS: usize = 1000;
/// The longest provider id, in bytes.
const MAX_PROVIDER_ID_LEN: usize = 512;

/// One node, as the platform describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name in the cluster.
    pub name: NodeName,
    /// How the platform calls it.
    pub provider_id: String,
    /// What it should do. A wish: a control plane needs a role grant too.
    pub role: NodeRole,
    /// Its address on the private segment.
    pub address: PrivateAddress,
    /// The operator's role grant, if the operator left one with the platform. Signed, so that it can lie here.
    pub role_grant: Option<Vec<u8>>,
}

/// SHA-256 of the init secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitSecretHash([u8; 32]);

impl InitSecretHash {
    /// Wraps a digest.
    #[must_use]
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// An answer of the metadata service that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ParseMetadataError {
    /// Not JSON of the documented form.
    #[error("not in the documented form")]
    Json(#[from] serde_json::Error),
    /// No name for a node.
    #[error(transparent)]
    Name(#[from] ParseNodeNameError),
    /// No role.
    #[error(transparent)]
    Role(#[from] ParseNodeRoleError),
    /// Outside the private segment.
    #[error(transparent)]
    Address(#[from] NotPrivate),
    /// Not what a provider id looks like.
    #[error("provider id is empty, longer than {MAX_PROVIDER_ID_LEN} bytes or not printable")]
    ProviderId,
    /// Not base64.
    #[error("role grant is not base64")]
    RoleGrant,
    /// No address of an API server has port 0.
    #[error("port of the API server is 0")]
    Port,
    /// Too many nodes.
    #[error("{0} peers, at most {MAX_PEERS} are read")]
    Peers(usize),
    /// No digest.
    #[error("hash of the init secret is not 64 hex digits")]
    InitSecretHash,
}

/// Unknown keys are allowed: other platforms' services add their own, and nothing here relies on their absence.
#[derive(Deserialize)]
struct RawInstance {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "ProviderID")]
    provider_id: String,
    #[serde(rename = "Role")]
    role: String,
    #[serde(rename = "VPCIP")]
    address: Ipv4Addr,
    #[serde(rename = "RoleGrant", default)]
    role_grant: String,
}

#[derive(Deserialize)]
struct RawEndpoint {
    host: Ipv4Addr,
    port: u16,
}

impl TryFrom<RawInstance> for Instance {
    type Error = ParseMetadataError;

    fn try_from(raw: RawInstance) -> Result<Self, Self::Error> {
        let role_grant = BASE64_STANDARD
            .decode(raw.role_grant)
            .map_err(|_| ParseMetadataError::RoleGrant)?;
        Ok(Self {
            name: NodeName::from_machine_name(&raw.name)?,
            provider_id: parse_provider_id(raw.provider_id)?,
            role: raw.role.parse()?,
            address: raw.address.try_into()?,
            role_grant: (!role_grant.is_empty()).then_some(role_grant),
        })
    }
}

fn parse_provider_id(text: String) -> Result<String, ParseMetadataError> {
    let plain = (1..=MAX_PROVIDER_ID_LEN).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic());
    if plain {
        Ok(text)
    } else {
        Err(ParseMetadataError::ProviderId)
    }
}

pub(crate) fn parse_instance(json: &[u8]) -> Result<Instance, ParseMetadataError> {
    serde_json::from_slice::<RawInstance>(json)?.try_into()
}

pub(crate) fn parse_peers(json: &[u8]) -> Result<Vec<Instance>, ParseMetadataError> {
    let raw: Vec<RawInstance> = serde_json::from_slice(json)?;
    if raw.len() > MAX_PEERS {
        return Err(ParseMetadataError::Peers(raw.len()));
    }
    raw.into_iter().map(Instance::try_from).collect()
}

pub(crate) fn parse_endpoint(json: &[u8]) -> Result<ApiEndpoint, ParseMetadataError> {
    let raw: RawEndpoint = serde_json::from_slice(json)?;
    if raw.port == 0 {
        return Err(ParseMetadataError::Port);
    }
    Ok(ApiEndpoint {
        host: raw.host.try_into()?,
        port: raw.port,
    })
}

pub(crate) fn parse_init_secret_hash(text: &[u8]) -> Result<InitSecretHash, ParseMetadataError> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text.trim_ascii(), &mut digest).map_err(|_| ParseMetadataError::InitSecretHash)?;
    Ok(InitSecretHash(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> serde_json::Value {
        serde_json::json!({"Name": "worker_0", "ProviderID": "qemu:///worker-0", "Role": "Worker", "VPCIP": "10.42.2.100"})
    }

    fn check(key: &str, value: &str) -> Result<Instance, ParseMetadataError> {
        let mut json = instance();
        json[key] = value.into();
        parse_instance(json.to_string().as_bytes())
    }

    #[test]
    fn an_instance_is_read() {
        let expected = Instance {
            name: "worker-0".parse().unwrap(),
            provider_id: "qemu:///worker-0".into(),
            role: NodeRole::Worker,
            address: Ipv4Addr::new(10, 42, 2, 100).try_into().unwrap(),
            role_grant: None,
        };
        assert_eq!(parse_instance(instance().to_string().as_bytes()).unwrap(), expected);
        assert_eq!(check("RoleGrant", "AQI=").unwrap().role_grant, Some(vec![1, 2]));
    }

    #[test]
    fn each_bad_field_is_named() {
        assert!(matches!(check("Name", ""), Err(ParseMetadataError::Name(_))));
        assert!(matches!(check("Name", "../etc"), Err(ParseMetadataError::Name(_))));
        assert!(matches!(check("Role", "Unknown"), Err(ParseMetadataError::Role(_))));
        assert!(matches!(check("VPCIP", "8.8.8.8"), Err(ParseMetadataError::Address(_))));
        assert!(matches!(check("VPCIP", "metadata"), Err(ParseMetadataError::Json(_))));
        assert!(matches!(check("ProviderID", ""), Err(ParseMetadataError::ProviderId)));
        assert!(matches!(
            check("ProviderID", "a\nb"),
            Err(ParseMetadataError::ProviderId)
        ));
        assert!(matches!(check("RoleGrant", "?"), Err(ParseMetadataError::RoleGrant)));
    }

    #[test]
    fn one_bad_peer_spoils_the_answer() {
        let json = serde_json::json!([instance(), {"Name": "x"}]);
        assert!(parse_peers(json.to_string().as_bytes()).is_err());
        let many = serde_json::Value::Array(vec![instance(); MAX_PEERS + 1]);
        assert!(matches!(
            parse_peers(many.to_string().as_bytes()),
            Err(ParseMetadataError::Peers(_))
        ));
    }

    #[test]
    fn endpoints_are_on_the_private_segment() {
        let check = |json: &str| parse_endpoint(json.as_bytes());
        assert_eq!(
            check(r#"{"host":"10.42.1.100","port":6443}"#).unwrap().to_string(),
            "10.42.1.100:6443"
        );
        assert!(matches!(
            check(r#"{"host":"203.0.113.1","port":6443}"#),
            Err(ParseMetadataError::Address(_))
        ));
        assert!(matches!(
            check(r#"{"host":"10.42.1.100","port":0}"#),
            Err(ParseMetadataError::Port)
        ));
        assert!(matches!(
            check(r#"{"host":"","port":1}"#),
            Err(ParseMetadataError::Json(_))
        ));
    }

    #[test]
    fn a_hash_has_64_digits() {
        assert!(parse_init_secret_hash(format!("{}\n", "0f".repeat(32)).as_bytes()).is_ok());
        for bad in ["", "00", &"0g".repeat(32), &"00".repeat(33)] {
            assert!(parse_init_secret_hash(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
