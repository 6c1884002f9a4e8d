//! Both documents: what they look like, and everything they must refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use kubernetes_components::{Component, ComponentList, InvalidListError, ParseConfigMapError, ParseMirrorError};
use serde_json::{Value, json};

fn hash(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn mirror() -> Value {
    json!({
        "version": "v1",
        "kubernetes_version": "v1.35.4",
        "components": [
            {"url": "bin/kubelet", "hash": hash('a'), "install_path": "/run/state/bin/kubelet"},
            {"url": "https://mirror.example/cni.tgz", "hash": hash('b'), "install_path": "/opt/cni/bin", "extract": true},
        ],
    })
}

fn parse(document: &Value) -> Result<ComponentList, ParseMirrorError> {
    ComponentList::from_mirror_document(document.to_string().as_bytes())
}

#[test]
fn a_mirror_document_survives_a_round_trip() {
    let list = parse(&mirror()).unwrap();
    let bytes = list.to_mirror_document();
    assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), mirror());
    assert_eq!(ComponentList::from_mirror_document(&bytes).unwrap(), list);
    let urls: Vec<_> = list
        .components()
        .iter()
        .map(|component| component.url.relative())
        .collect();
    assert_eq!(urls, [Some("bin/kubelet"), None]);
}

#[test]
fn refuses_a_mirror_document_with_one_wrong_value() {
    let cases = [
        ("/version", json!("v2")),
        ("/kubernetes_version", json!("1.35")),
        ("/components/0/hash", json!("")),
        ("/components/0/hash", json!(hash('A'))),
        ("/components/0/hash", json!("sha256:aa")),
        ("/components/0/hash", json!("sha512:aa")),
        ("/components/0/install_path", json!("run/kubelet")),
        ("/components/0/install_path", json!("/run/../etc/shadow")),
        ("/components/0/install_path", json!("/opt/cni/bin")),
        ("/components/0/url", json!("/etc/shadow")),
        ("/components/0/url", json!("../kubelet")),
        ("/components/0/url", json!("file:///etc/shadow")),
        ("/components/0/url", json!("https://")),
        ("/components/0/url", json!("a b")),
        ("/components/0/url", json!("%2e%2e/kubelet")),
    ];
    for (pointer, value) in cases {
        let mut document = mirror();
        *document.pointer_mut(pointer).unwrap() = value.clone();
        assert!(parse(&document).is_err(), "{pointer} {value}");
    }
}

#[test]
fn refuses_missing_and_unknown_keys() {
    for (pointer, key) in [
        ("", "version"),
        ("", "components"),
        ("/components/0", "hash"),
        ("/components/0", "url"),
    ] {
        let mut document = mirror();
        document
            .pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(key);
        assert!(parse(&document).is_err(), "without {key}");
    }
    for pointer in ["", "/components/0"] {
        let mut document = mirror();
        document.pointer_mut(pointer).unwrap()["extra"] = json!(1);
        assert!(parse(&document).is_err(), "extra in {pointer:?}");
    }
}

#[test]
fn refuses_more_than_it_has_to_hold() {
    let mut document = mirror();
    let many = (0..257)
        .map(|i| json!({"url": "a", "hash": hash('a'), "install_path": format!("/{i}")}))
        .collect();
    document["components"] = Value::Array(many);
    assert!(matches!(
        parse(&document),
        Err(ParseMirrorError::List(InvalidListError::TooMany(257)))
    ));
    let long = vec![b' '; kubernetes_components::MAX_DOCUMENT_LEN + 1];
    assert!(matches!(
        ComponentList::from_mirror_document(&long),
        Err(ParseMirrorError::TooLong(_))
    ));
}

#[test]
fn a_config_map_survives_a_round_trip_and_says_its_hash() {
    let list = parse(&mirror()).unwrap();
    let (name, data) = (list.config_map_name(), list.config_map_components());
    assert!(!data.contains("\"extract\":false"));
    assert_eq!(ComponentList::from_config_map(&name, &data, "v1.35.4").unwrap(), list);

    let other = data.replace(&hash('a'), &hash('c'));
    let refused = ComponentList::from_config_map(&name, &other, "v1.35.4");
    assert!(matches!(refused, Err(ParseConfigMapError::Name { .. })));
    assert!(matches!(
        ComponentList::from_config_map(&name, &data, "x"),
        Err(ParseConfigMapError::Version(_))
    ));
}

#[test]
fn reads_a_config_map_with_the_keys_of_old_releases() {
    let data = json!([{"URL": "a", "url": "", "Hash": hash('a'), "InstallPath": "/b", "Extract": true}]).to_string();
    let expected = Component {
        url: "a".parse().unwrap(),
        hash: digest::oci::parse(&hash('a')).unwrap(),
        install_path: "/b".parse().unwrap(),
        extract: true,
    };
    let list = ComponentList::new("v1.30.14".parse().unwrap(), vec![expected]).unwrap();
    assert_eq!(
        ComponentList::from_config_map(&list.config_map_name(), &data, "v1.30.14").unwrap(),
        list
    );
}
