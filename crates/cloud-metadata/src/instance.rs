use std::net::Ipv4Addr;

use base64::prelude::{BASE64_STANDARD, Engine};
use cluster_types::{
    NodeName, NodeRole, OperatorPublicKey, ParseCidrError, ParseNodeInterfaceError, ParseNodeNameError,
    ParseNodeRoleError,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{ApiEndpoint, NotPrivate, PrivateAddress};

/// No cluster of ours has more nodes.
const MAX_PEERS: usize = 1000;
/// The longest provider id, in bytes.
const MAX_PROVIDER_ID_LEN: usize = 512;

/// One node, as the platform describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name in the cluster.
    pub name: NodeName,
    /// The platform's id of the node.
    pub provider_id: String,
    /// The role it should have. This is only a request: a control plane needs a role grant too.
    pub role: NodeRole,
    /// Its address on the private network.
    pub address: PrivateAddress,
    /// The operator's role grant, if the operator gave one to the platform. Signed, so an untrusted platform may store it.
    pub role_grant: Option<Vec<u8>>,
}

/// SHA-256 of the init secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitSecretHash([u8; 32]);

impl InitSecretHash {
    /// Takes a digest.
    #[must_use]
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// An answer of the metadata service that is malformed or impossible.
#[derive(Debug, thiserror::Error)]
pub enum ParseMetadataError {
    /// Not JSON of the documented form.
    #[error("{key} is not in the documented form")]
    Json {
        /// The key, or the whole answer.
        key: String,
        /// Where the JSON is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// `Name` is not a node name.
    #[error("Name is unusable")]
    Name(#[from] ParseNodeNameError),
    /// `Role` is not a role.
    #[error("Role is unusable")]
    Role(#[from] ParseNodeRoleError),
    /// `VPCIP` cannot be a node's address.
    #[error("VPCIP is unusable")]
    Address(#[source] NotPrivate),
    /// The API server's `host` cannot be a node's address.
    #[error("host is unusable")]
    Host(#[source] NotPrivate),
    /// `ProviderID` does not look like one.
    #[error("ProviderID is empty, longer than {MAX_PROVIDER_ID_LEN} bytes or not printable")]
    ProviderId,
    /// `RoleGrant` is not base64.
    #[error("RoleGrant is not base64")]
    RoleGrant,
    /// The API server's `port` is 0.
    #[error("port is 0")]
    Port,
    /// One of the peers is unusable.
    #[error("peer {index} is unusable")]
    Peer {
        /// The peer's position, from 0.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: Box<Self>,
    },
    /// Too many nodes.
    #[error("{0} peers, at most {MAX_PEERS} are read")]
    Peers(usize),
    /// `cidr` is not a network for nodes.
    #[error("cidr is unusable")]
    Cidr(#[source] ParseCidrError),
    /// `interface` is not one of a node's network cards.
    #[error("interface is unusable")]
    Interface(#[source] ParseNodeInterfaceError),
    /// Too few or too many name servers.
    #[error("nameServers has {0} addresses, expected 1 to 3")]
    NameServers(usize),
    /// No name server can have this address.
    #[error("{0} cannot be a name server: expected one machine's address outside the cluster")]
    NameServer(Ipv4Addr),
    /// The hash of the init secret is not a digest.
    #[error("the hash of the init secret is not 64 hex digits")]
    InitSecretHash,
    /// The operator's key is not 64 hex digits.
    #[error("operatorkey is not an Ed25519 public key: expected 64 hex digits")]
    OperatorKey,
}

/// Unknown keys are allowed: other platforms' services add keys of their own, and nothing here relies on their absence.
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
            address: raw.address.try_into().map_err(ParseMetadataError::Address)?,
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

pub(crate) fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, ParseMetadataError> {
    let refuse = |path: &str, source: serde_json::Error| {
        // A syntax error has no key.
        let whole = path == "." || !source.is_data();
        let key = if whole { "the answer" } else { path }.to_owned();
        ParseMetadataError::Json { key, source }
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| refuse(&error.path().to_string(), error.into_inner()))?;
    deserializer.end().map_err(|error| refuse(".", error))?;
    Ok(value)
}

pub(crate) fn parse_instance(json: &[u8]) -> Result<Instance, ParseMetadataError> {
    from_json::<RawInstance>(json)?.try_into()
}

pub(crate) fn parse_peers(json: &[u8]) -> Result<Vec<Instance>, ParseMetadataError> {
    let raw: Vec<RawInstance> = from_json(json)?;
    if raw.len() > MAX_PEERS {
        return Err(ParseMetadataError::Peers(raw.len()));
    }
    let parse = |(index, raw)| {
        Instance::try_from(raw).map_err(|source| ParseMetadataError::Peer {
            index,
            source: Box::new(source),
        })
    };
    raw.into_iter().enumerate().map(parse).collect()
}

pub(crate) fn parse_endpoint(json: &[u8]) -> Result<ApiEndpoint, ParseMetadataError> {
    let raw: RawEndpoint = from_json(json)?;
    if raw.port == 0 {
        return Err(ParseMetadataError::Port);
    }
    Ok(ApiEndpoint {
        host: raw.host.try_into().map_err(ParseMetadataError::Host)?,
        port: raw.port,
    })
}

pub(crate) fn parse_init_secret_hash(text: &[u8]) -> Result<InitSecretHash, ParseMetadataError> {
    let digest = parse_hex(text).ok_or(ParseMetadataError::InitSecretHash)?;
    Ok(InitSecretHash(digest))
}

pub(crate) fn parse_operator_key(text: &[u8]) -> Result<OperatorPublicKey, ParseMetadataError> {
    let key = parse_hex(text).ok_or(ParseMetadataError::OperatorKey)?;
    Ok(OperatorPublicKey::new(key))
}

fn parse_hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.trim_ascii(), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use error_report::Chain;

    use super::*;

    fn instance() -> serde_json::Value {
        serde_json::json!({"Name": "worker_0", "ProviderID": "qemu:///worker-0", "Role": "Worker", "VPCIP": "10.42.2.100"})
    }

    fn check(key: &str, value: impl Into<serde_json::Value>) -> Result<Instance, ParseMetadataError> {
        let mut json = instance();
        json[key] = value.into();
        parse_instance(json.to_string().as_bytes())
    }

    /// Expects one error, which begins with the key and ends with the reason.
    fn check_refused<T: std::fmt::Debug>(result: Result<T, ParseMetadataError>, key: &str, reason: &str) {
        let error = Chain(&result.unwrap_err()).to_string();
        assert!(error.starts_with(key), "{error}");
        assert!(error.contains(reason), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
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
    fn bad_input_to_each_key_of_an_instance_names_it() {
        for (key, value, reason) in [
            ("Name", "".into(), "\"\" is not a node name"),
            ("Name", "../etc".into(), "\"../etc\" is not a node name"),
            ("Name", 5.into(), "expected a string"),
            ("ProviderID", "".into(), "is empty"),
            ("ProviderID", "a\nb".into(), "not printable"),
            (
                "ProviderID",
                "a".repeat(MAX_PROVIDER_ID_LEN + 1).into(),
                "longer than 512",
            ),
            ("ProviderID", serde_json::Value::Null, "expected a string"),
            ("Role", "Unknown".into(), "control-plane or worker"),
            ("Role", true.into(), "expected a string"),
            ("VPCIP", "8.8.8.8".into(), "8.8.8.8 cannot be a node's address"),
            ("VPCIP", "10.96.0.1".into(), "10.96.0.1 cannot be a node's address"),
            ("VPCIP", "metadata".into(), "invalid IP"),
            ("VPCIP", "::1".into(), "invalid IP"),
            ("RoleGrant", "?".into(), "is not base64"),
            ("RoleGrant", vec![1].into(), "expected a string"),
        ] {
            check_refused(check(key, value), key, reason);
        }
        for key in ["Name", "ProviderID", "Role", "VPCIP"] {
            let mut json = instance();
            json.as_object_mut().unwrap().remove(key);
            let parsed = parse_instance(json.to_string().as_bytes());
            check_refused(parsed, "the answer is not", &format!("missing field `{key}`"));
        }
        for nonsense in ["", "{", "[]", "null", &format!("{} x", instance())] {
            check_refused(parse_instance(nonsense.as_bytes()), "the answer is not", "");
        }
    }

    #[test]
    fn one_bad_peer_spoils_the_answer() {
        let check =
            |second: serde_json::Value| parse_peers(serde_json::json!([instance(), second]).to_string().as_bytes());
        assert_eq!(check(instance()).unwrap().len(), 2);
        let with = |key: &str, value: &str| {
            let mut json = instance();
            json[key] = value.into();
            json
        };
        check_refused(
            check(with("Role", "x")),
            "peer 1 is unusable: Role",
            "control-plane or worker",
        );
        check_refused(check(with("VPCIP", "x")), "[1].VPCIP is not", "invalid IP");
        check_refused(
            check(serde_json::json!({"Name": "x"})),
            "[1] is not",
            "missing field `ProviderID`",
        );
        check_refused(parse_peers(b"{}"), "the answer is not", "expected a sequence");
        let many = serde_json::Value::Array(vec![instance(); MAX_PEERS + 1]);
        check_refused(parse_peers(many.to_string().as_bytes()), "1001 peers", "at most 1000");
    }

    #[test]
    fn bad_input_to_each_key_of_an_endpoint_names_it() {
        let check = |json: &str| parse_endpoint(json.as_bytes());
        assert_eq!(
            check(r#"{"host":"10.42.1.100","port":6443}"#).unwrap().to_string(),
            "10.42.1.100:6443"
        );
        for (json, key, reason) in [
            (
                r#"{"host":"203.0.113.1","port":6443}"#,
                "host",
                "203.0.113.1 cannot be a node's address",
            ),
            (r#"{"host":"","port":1}"#, "host", "invalid IP"),
            (r#"{"host":1,"port":1}"#, "host", "expected"),
            (r#"{"port":1}"#, "the answer is not", "missing field `host`"),
            (r#"{"host":"10.42.1.100","port":0}"#, "port is 0", ""),
            (r#"{"host":"10.42.1.100","port":65536}"#, "port is not", "expected u16"),
            (r#"{"host":"10.42.1.100","port":"1"}"#, "port is not", "expected u16"),
            (r#"{"host":"10.42.1.100"}"#, "the answer is not", "missing field `port`"),
        ] {
            check_refused(check(json), key, reason);
        }
    }

    #[test]
    fn a_hash_has_64_digits() {
        assert!(parse_init_secret_hash(format!("{}\n", "0f".repeat(32)).as_bytes()).is_ok());
        for bad in ["", "00", &"0g".repeat(32), &"00".repeat(33)] {
            let parsed = parse_init_secret_hash(bad.as_bytes());
            check_refused(parsed, "the hash of the init secret", "64 hex digits");
        }
    }
}
