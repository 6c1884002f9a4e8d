//! The CLI's init request, parsed.

use base64::prelude::{BASE64_URL_SAFE, Engine};
use cluster_policy::BelievedPolicy;
use cluster_types::{Cidr, ClusterId, MeasurementSalt};
use component_installer::ComponentMirror;
use error_report::Chain;
use grpc_api::components::Component as ComponentMessage;
use grpc_api::init::InitRequest as InitMessage;
use key_derivation::{MasterSecret, cluster_id};
use kubeadm::{CertSan, ClusterName};
use kubernetes_components::{Component, ComponentList};
use operator_key::OperatorKey;
use zeroize::{Zeroize, Zeroizing};

const KMS_PREFIX: &str = "kms://cluster-kms?";
const NO_STORAGE: &str = "storage://no-store";
const DEFAULT_NAME: &str = "constellation";
/// More names than this are a mistake.
const MAX_CERT_SANS: usize = 64;

/// A request in which everything is valid.
#[derive(Debug)]
pub(crate) struct InitRequest {
    pub(crate) master_secret: MasterSecret,
    pub(crate) measurement_salt: MeasurementSalt,
    pub(crate) cluster: ClusterId,
    /// Signed with the key that the master secret gives.
    pub(crate) policy: BelievedPolicy,
    pub(crate) components: ComponentList,
    /// `None` stands for the platform's own mirror.
    pub(crate) mirror: Option<ComponentMirror>,
    pub(crate) name: ClusterName,
    pub(crate) cert_sans: Vec<CertSan>,
    pub(crate) pods: Cidr,
    pub(crate) services: Cidr,
}

/// Every problem of a request, each with its field. No secret is repeated.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(crate) struct InvalidRequest(Vec<String>);

/// Collects problems while parsing continues.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn take<T, E: std::fmt::Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        parsed
            .map_err(|problem| self.0.push(format!("{field}: {problem}")))
            .ok()
    }
}

impl InitRequest {
    pub(crate) fn parse(message: InitMessage) -> Result<Self, InvalidRequest> {
        let InitMessage {
            kms_uri,
            storage_uri,
            measurement_salt,
            kubernetes_version,
            kubernetes_components,
            mut init_secret,
            cluster_name,
            apiserver_cert_sans,
            service_cidr,
            component_mirror,
            pod_cidr,
            cluster_policy,
        } = message;
        let kms_uri = Zeroizing::new(kms_uri);
        // The caller was asked for it before.
        init_secret.zeroize();
        let mut problems = Problems::default();
        let master_secret = problems.take("kms_uri", parse_kms_uri(&kms_uri));
        problems.take("storage_uri", check_storage_uri(&storage_uri));
        let measurement_salt = problems.take(
            "measurement_salt",
            MeasurementSalt::try_from(measurement_salt.as_slice()),
        );
        let components = parse_components(&kubernetes_version, kubernetes_components, &mut problems);
        let mirror = optional(&component_mirror).map(str::parse::<ComponentMirror>);
        let mirror = problems.take("component_mirror", mirror.transpose());
        let name = optional(&cluster_name).unwrap_or(DEFAULT_NAME);
        let name = problems.take("cluster_name", name.parse());
        let cert_sans = problems.take("apiserver_cert_sans", parse_cert_sans(&apiserver_cert_sans));
        let pods = problems.take("pod_cidr", optional(&pod_cidr).map_or(Ok(Cidr::PODS), Cidr::for_pods));
        let services = problems.take(
            "service_cidr",
            optional(&service_cidr).map_or(Ok(Cidr::SERVICES), Cidr::for_services),
        );
        let request = || {
            let (master_secret, measurement_salt, components) = (master_secret?, measurement_salt?, components?);
            let cluster = cluster_id(&master_secret.kek().measurement_secret(), &measurement_salt);
            let operator = OperatorKey::of(&master_secret).public();
            let policy = BelievedPolicy::for_new_member(&cluster_policy, &operator, cluster, &components);
            let policy = policy.map_err(|refused| Chain(&refused).to_string());
            Some(Self {
                cluster,
                policy: problems.take("cluster_policy", policy)?,
                master_secret,
                measurement_salt,
                components,
                mirror: mirror?,
                name: name?,
                cert_sans: cert_sans?,
                pods: pods?,
                services: services?,
            })
        };
        let request = request();
        request
            .filter(|_| problems.0.is_empty())
            .ok_or(InvalidRequest(problems.0))
    }
}

fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// `kms://cluster-kms?key=<base64url>&salt=<base64url>`; other key management comes with its own issue.
fn parse_kms_uri(uri: &str) -> Result<MasterSecret, String> {
    const FORM: &str = "expected kms://cluster-kms?key=<base64url>&salt=<base64url>";
    let query = uri.strip_prefix(KMS_PREFIX).ok_or(FORM)?;
    let mut parts = query.split('&');
    let (Some(key), Some(salt), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(FORM.into());
    };
    let decode = |part: &str, name: &str| {
        let value = part.strip_prefix(name).ok_or(FORM)?;
        BASE64_URL_SAFE.decode(value).map_err(|_| FORM)
    };
    let key = Zeroizing::new(decode(key, "key=")?);
    let salt = decode(salt, "salt=")?;
    MasterSecret::new(key, salt).map_err(|error| error.to_string())
}

fn check_storage_uri(uri: &str) -> Result<(), String> {
    if uri == NO_STORAGE {
        Ok(())
    } else {
        Err(format!("expected {NO_STORAGE}"))
    }
}

/// The list of a request or of a ticket.
pub(crate) fn parse_component_list(
    version: &str,
    messages: Vec<ComponentMessage>,
) -> Result<ComponentList, InvalidRequest> {
    let mut problems = Problems::default();
    parse_components(version, messages, &mut problems).ok_or(InvalidRequest(problems.0))
}

fn parse_components(version: &str, messages: Vec<ComponentMessage>, problems: &mut Problems) -> Option<ComponentList> {
    let version = problems.take("kubernetes_version", version.parse());
    if messages.is_empty() {
        problems.0.push("kubernetes_components: the list is empty".into());
    }
    let mut components = Vec::new();
    for (index, message) in messages.into_iter().enumerate() {
        let ComponentMessage {
            url,
            hash,
            install_path,
            extract,
        } = message;
        let field = |name: &str| format!("kubernetes_components[{index}].{name}");
        let url = problems.take(&field("url"), url.parse());
        let hash = problems.take(&field("hash"), digest::oci::parse(&hash));
        let install_path = problems.take(&field("install_path"), install_path.parse());
        if let (Some(url), Some(hash), Some(install_path)) = (url, hash, install_path) {
            components.push(Component {
                url,
                hash,
                install_path,
                extract,
            });
        }
    }
    let list = problems.take("kubernetes_components", ComponentList::new(version?, components));
    list.filter(|_| problems.0.is_empty())
}

fn parse_cert_sans(texts: &[String]) -> Result<Vec<CertSan>, String> {
    if texts.len() > MAX_CERT_SANS {
        return Err(format!("{} names, at most {MAX_CERT_SANS}", texts.len()));
    }
    let parse = |text: &String| text.parse().map_err(|error: kubeadm::ParseNameError| error.to_string());
    texts.iter().map(parse).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use cluster_policy::{ClusterPolicy, Release};
    use cluster_types::Variant;
    use measurements::ReferenceValues;
    use node_secrets::KeyServiceKey;

    use super::*;

    /// What messages of tests are made from.
    pub(crate) struct Example {
        /// Every byte of the master secret's key.
        pub(crate) key: u8,
        /// Every byte of the salt of the cluster id.
        pub(crate) salt: u8,
        pub(crate) components: Vec<ComponentMessage>,
    }

    /// Key and salt of the master secret are 32 bytes of `C` and `S`, so that tests can look for them.
    impl Default for Example {
        fn default() -> Self {
            let kubelet = ComponentMessage {
                url: "bin/kubelet".into(),
                hash: format!("sha256:{}", "00".repeat(32)),
                install_path: "/run/state/bin/kubelet".into(),
                extract: false,
            };
            Self {
                key: b'C',
                salt: 9,
                components: vec![kubelet],
            }
        }
    }

    impl Example {
        fn master_secret(&self) -> MasterSecret {
            MasterSecret::new(Zeroizing::new(vec![self.key; 32]), vec![b'S'; 32]).unwrap()
        }

        pub(crate) fn message(&self) -> InitMessage {
            let (secret, salt) = (self.master_secret(), MeasurementSalt::new([self.salt; 32]));
            let cluster = cluster_id(&secret.kek().measurement_secret(), &salt);
            let encode = |bytes: &[u8]| BASE64_URL_SAFE.encode(bytes);
            let (key, master_salt) = (encode(secret.expose_key()), encode(secret.salt()));
            InitMessage {
                kms_uri: format!("kms://cluster-kms?key={key}&salt={master_salt}"),
                storage_uri: NO_STORAGE.into(),
                measurement_salt: salt.as_bytes().to_vec(),
                kubernetes_version: "v1.35.4".into(),
                kubernetes_components: self.components.clone(),
                cluster_policy: policy(&OperatorKey::of(&secret), cluster, &self.components),
                init_secret: b"canary init secret".to_vec(),
                ..InitMessage::default()
            }
        }
    }

    /// Whose master secret the messages of tests hold.
    pub(crate) fn operator_key() -> OperatorKey {
        OperatorKey::of(&Example::default().master_secret())
    }

    /// The key service with that master secret.
    pub(crate) fn key_service() -> KeyServiceKey {
        KeyServiceKey::of(&Example::default().master_secret())
    }

    /// This operator's policy, which lists these components alone.
    pub(crate) fn policy(operator: &OperatorKey, cluster: ClusterId, components: &[ComponentMessage]) -> Vec<u8> {
        policy_with_serial(1, operator, cluster, components)
    }

    pub(crate) fn policy_with_serial(
        serial: u64,
        operator: &OperatorKey,
        cluster: ClusterId,
        components: &[ComponentMessage],
    ) -> Vec<u8> {
        let components = parse_component_list("v1.35.4", components.to_vec()).unwrap();
        let policy = ClusterPolicy {
            cluster,
            serial,
            images: vec![ReferenceValues::new(Variant::ALL[0], "image", &[4])],
            releases: vec![Release::of(&components)],
            min_grant_serial: 0,
            key_service: key_service().public(),
        };
        let signed = BelievedPolicy::sign(&policy, operator).unwrap();
        signed.as_bytes().to_vec()
    }

    fn message() -> InitMessage {
        Example::default().message()
    }

    fn check(change: impl FnOnce(&mut InitMessage)) -> String {
        let mut message = message();
        change(&mut message);
        InitRequest::parse(message).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let request = InitRequest::parse(message()).unwrap();
        assert_eq!(request.name.to_string(), "constellation");
        assert_eq!((request.pods, request.services), (Cidr::PODS, Cidr::SERVICES));
        assert!(request.mirror.is_none());
    }

    #[test]
    fn bad_input_to_each_field_gives_one_error_that_names_it() {
        type Change = fn(&mut InitMessage);
        let cases: [(Change, &str); 39] = [
            (|m| m.kms_uri.clear(), "kms_uri: expected kms://cluster-kms?key="),
            (
                |m| m.kms_uri = "kms://aws?".into(),
                "kms_uri: expected kms://cluster-kms?key=",
            ),
            (
                |m| m.kms_uri = "kms://cluster-kms?key=&salt=".into(),
                "kms_uri: key of the master secret has 0 bytes",
            ),
            (
                |m| m.kms_uri = m.kms_uri.split('&').next().unwrap().into(),
                "kms_uri: expected kms://cluster-kms?key=",
            ),
            (|m| m.kms_uri = m.kms_uri.replace("key=", "key=?"), "kms_uri: expected"),
            (
                |m| m.kms_uri = m.kms_uri.replace("salt=", "pepper="),
                "kms_uri: expected",
            ),
            (|m| m.kms_uri.push_str("&more=1"), "kms_uri: expected"),
            (|m| m.storage_uri.clear(), "storage_uri: expected storage://no-store"),
            (
                |m| m.storage_uri = "storage://s3".into(),
                "storage_uri: expected storage://no-store",
            ),
            (
                |m| m.measurement_salt.clear(),
                "measurement_salt: MeasurementSalt has 0 bytes, expected 32",
            ),
            (
                |m| m.measurement_salt.push(0),
                "measurement_salt: MeasurementSalt has 33 bytes, expected 32",
            ),
            (|m| m.kubernetes_version.clear(), "kubernetes_version: \"\" is not"),
            (
                |m| m.kubernetes_version = "1.35".into(),
                "kubernetes_version: \"1.35\" is not a Kubernetes release",
            ),
            (
                |m| m.kubernetes_components.clear(),
                "kubernetes_components: the list is empty",
            ),
            (
                |m| m.kubernetes_components.push(m.kubernetes_components[0].clone()),
                "kubernetes_components: two components have the install path",
            ),
            (
                |m| m.kubernetes_components = many_components(),
                "kubernetes_components: 257 components, at most 256",
            ),
            (
                |m| m.kubernetes_components[0].hash.clear(),
                "kubernetes_components[0].hash: \"\" is not \"sha256:\"",
            ),
            (
                |m| m.kubernetes_components[0].hash = "sha1:00".into(),
                "kubernetes_components[0].hash: \"sha1:00\" is not \"sha256:\"",
            ),
            (
                |m| m.kubernetes_components[0].url.clear(),
                "kubernetes_components[0].url: \"\" is neither",
            ),
            (
                |m| m.kubernetes_components[0].url = "../x".into(),
                "kubernetes_components[0].url: \"../x\" is neither",
            ),
            (
                |m| m.kubernetes_components[0].install_path = "x".into(),
                "kubernetes_components[0].install_path: \"x\" is not an absolute path",
            ),
            (
                |m| m.kubernetes_components[0].install_path = "/a/../b".into(),
                "kubernetes_components[0].install_path: \"/a/../b\" is not an absolute path",
            ),
            (
                |m| m.component_mirror = "file:///".into(),
                "component_mirror: \"file:///\" is not a mirror's address",
            ),
            (
                |m| m.component_mirror = "http://x/?y".into(),
                "component_mirror: \"http://x/?y\" is not a mirror's address",
            ),
            (
                |m| m.cluster_policy.clear(),
                "cluster_policy: the cluster policy is malformed",
            ),
            (
                |m| m.kubernetes_components[0].url = "bin/other".into(),
                "cluster_policy: the cluster policy (serial 1) does not list Kubernetes v1.35.4 with the list",
            ),
            (
                |m| m.measurement_salt = vec![8; 32],
                "cluster_policy: the cluster policy is for cluster",
            ),
            (
                |m| m.kms_uri = m.kms_uri.replace("key=Q0ND", "key=Q0NE"),
                "cluster_policy: the cluster policy is signed by operator",
            ),
            (|m| m.cluster_name = "a b".into(), "cluster_name: \"a b\" is not"),
            (|m| m.cluster_name = "A".into(), "cluster_name: \"A\" is not"),
            (
                |m| m.apiserver_cert_sans = vec!["127.0.0.1".into(), "a b".into()],
                "apiserver_cert_sans: \"a b\" is not an IP address or a DNS name",
            ),
            (
                |m| m.apiserver_cert_sans = vec![String::new()],
                "apiserver_cert_sans: \"\" is not an IP address or a DNS name",
            ),
            (
                |m| m.apiserver_cert_sans = vec!["127.0.0.1".into(); 65],
                "apiserver_cert_sans: 65 names, at most 64",
            ),
            (
                |m| m.pod_cidr = "10.0.0.1/8".into(),
                "pod_cidr: \"10.0.0.1/8\" has host bits set",
            ),
            (
                |m| m.pod_cidr = "10.1.0.0/16".into(),
                "pod_cidr: 10.1.0.0/16 is outside 10.244.0.0/16",
            ),
            (
                |m| m.pod_cidr = "10.244.0.0/25".into(),
                "pod_cidr: 10.244.0.0/25 is too small",
            ),
            (
                |m| m.service_cidr = "10.96.0.0/29".into(),
                "service_cidr: 10.96.0.0/29 is too small",
            ),
            (
                |m| m.service_cidr = "fd00::/8".into(),
                "service_cidr: \"fd00::/8\" is not",
            ),
            (
                |m| m.service_cidr = "10.96.0.0/11".into(),
                "service_cidr: 10.96.0.0/11 is outside 10.96.0.0/12",
            ),
        ];
        for (change, expected) in cases {
            let problems = check(change);
            assert!(problems.starts_with(expected), "{problems}");
            assert!(!problems.contains("; "), "one mistake, several problems: {problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
    }

    fn many_components() -> Vec<ComponentMessage> {
        let component = |number| ComponentMessage {
            install_path: format!("/run/state/{number}"),
            ..message().kubernetes_components[0].clone()
        };
        (0..257).map(component).collect()
    }

    #[test]
    fn all_problems_come_at_once() {
        let problems = check(|message| *message = InitMessage::default());
        for field in [
            "kms_uri",
            "storage_uri",
            "measurement_salt",
            "kubernetes_version",
            "kubernetes_components",
        ] {
            assert!(problems.contains(field), "{problems}");
        }
    }

    #[test]
    fn secrets_are_not_repeated() {
        let problems = check(|message| message.kms_uri = "kms://cluster-kms?key=canary&salt=canary".into());
        assert!(!problems.contains("canary"), "{problems}");
    }
}
