//! What an attacker between or beside honest nodes tries, with machines of each technology.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use attestation::{
    AppraisalError, AttestError, Attester, BindingParts, Evidence, ExpectedMembership, MeasuringAttester, Membership,
    Nonce, Outcome, Purpose, SessionEvidence, UnixTime,
};
use cluster_types::{ClusterId, NodeRole, OperatorPublicKey, SealingPublicKey, Variant};
use test_machines::{Machine, SOFTWARE_KEY, SOFTWARE_TPM, Technology, for_each_technology, verifiers};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::frame::{self, Hello, Kind, Verdict};
use crate::leaf::Leaf;
use crate::{AttestedStream, Endpoint, HandshakeError, Limits, NonceSource, PeerPolicy};

type Handshake = Result<AttestedStream<DuplexStream>, HandshakeError>;

struct Peer {
    attester: Arc<dyn MeasuringAttester>,
    machine: Box<dyn Machine>,
}

fn node(technology: &dyn Technology) -> Peer {
    let machine = technology.boot().unwrap();
    let attester = machine.attester().unwrap();
    Peer { attester, machine }
}

fn member(technology: &dyn Technology) -> Peer {
    let node = node(technology);
    node.attester
        .measure_membership(&Membership::new(ClusterId::new([1; 32]), NodeRole::ControlPlane))
        .unwrap();
    node
}

impl Peer {
    fn attester(&self) -> Option<Arc<dyn Attester>> {
        Some(self.attester.clone())
    }
}

fn attested(technology: &dyn Technology, membership: ExpectedMembership) -> PeerPolicy {
    PeerPolicy::Attested(Arc::new(verifiers(technology, membership)))
}

fn new_node(technology: &dyn Technology) -> PeerPolicy {
    attested(technology, ExpectedMembership::New)
}

fn any_member(technology: &dyn Technology) -> PeerPolicy {
    attested(technology, ExpectedMembership::Any)
}

fn anyone() -> PeerPolicy {
    PeerPolicy::Unattested { reason: "test" }
}

async fn check(client: &Endpoint, server: &Endpoint, purpose: Purpose) -> (Handshake, Handshake) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(
        client.connect(purpose, near),
        server.accept(&[Purpose::Join, Purpose::Rejoin], far)
    )
}

fn must_be_bound_to_something_else(technology: &dyn Technology, result: Handshake) {
    match result {
        Err(HandshakeError::Appraisal(error)) => assert!(technology.is_bound_to_something_else(&error), "{error:?}"),
        other => panic!("{other:?}"),
    }
}

for_each_technology!(async:
    both_sides_attest_and_talk,
    what_a_node_presents_covers_its_sealing_key,
    without_a_nonce_there_is_no_session,
    only_one_side_attests_where_the_policy_says_so,
    a_changed_image_is_refused_and_told_only_the_category,
    a_warning_opens_no_session,
    another_operators_node_is_refused,
    a_join_service_of_no_cluster_is_refused,
    a_join_service_of_another_cluster_is_refused,
    a_program_that_cannot_attest_is_not_let_in,
    a_purpose_that_is_not_offered_is_refused,
    a_relayed_session_is_refused,
    reflected_evidence_is_refused,
    replayed_evidence_is_refused,
    a_peer_that_skips_its_evidence_is_refused,
    another_version_of_the_exchange_is_refused,
    a_short_nonce_is_refused,
    a_short_sealing_key_is_refused,
    a_peer_that_does_not_accept_our_variant_gets_no_quote,
);

async fn both_sides_attest_and_talk(technology: &dyn Technology) {
    let (joining, member) = (node(technology), member(technology));
    let client = Endpoint::new(joining.attester(), any_member(technology));
    let server = Endpoint::new(member.attester(), new_node(technology));
    let (near, far) = check(&client, &server, Purpose::Join).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.node().unwrap().identity(), member.attester.identity());
    assert_eq!(far.node().unwrap().identity(), joining.attester.identity());
    assert_eq!(far.node().unwrap().purpose(), Purpose::Join);

    assert_eq!(near.own_binding(), Some(far.node().unwrap().presented().binding()));
    assert_eq!(far.own_binding(), Some(near.node().unwrap().presented().binding()));

    near.write_all(b"hello").await.unwrap();
    near.flush().await.unwrap();
    let mut received = [0; 5];
    far.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"hello");
}

/// Whoever relays what a server was shown can have it appraised elsewhere, and cannot put another key into it.
async fn what_a_node_presents_covers_its_sealing_key(technology: &dyn Technology) {
    let joining = node(technology);
    let key = SealingPublicKey::new([7; 32]);
    let client = Endpoint::new(joining.attester(), anyone()).with_sealing_key(key);
    let nonce = Nonce::generate();
    let server = Endpoint::new(None, new_node(technology)).with_nonces(Arc::new(Fixed(Some(nonce))));
    let (near, far) = check(&client, &server, Purpose::Join).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let presented = far.node().unwrap().presented();
    assert_eq!((presented.parts.sealing_key, presented.parts.nonce), (Some(key), nonce));
    assert_eq!(near.own_binding(), Some(presented.binding()));

    let verifiers = verifiers(technology, ExpectedMembership::New);
    let elsewhere = |presented: &SessionEvidence| {
        verifiers.appraise(&presented.evidence, &presented.binding(), UnixTime::from_seconds(0))
    };
    elsewhere(presented).unwrap();
    let mut forged = presented.clone();
    for sealing_key in [Some(SealingPublicKey::new([8; 32])), None] {
        forged.parts.sealing_key = sealing_key;
        let error = elsewhere(&forged).unwrap_err();
        assert!(technology.is_bound_to_something_else(&error), "{error:?}");
    }
}

/// Who appraises elsewhere cannot be asked for a nonce, so there is nothing it would believe.
async fn without_a_nonce_there_is_no_session(technology: &dyn Technology) {
    let joining = node(technology);
    let client = Endpoint::new(joining.attester(), anyone());
    let server = Endpoint::new(None, new_node(technology)).with_nonces(Arc::new(Fixed(None)));
    let (_, far) = check(&client, &server, Purpose::Join).await;
    assert!(matches!(far, Err(HandshakeError::NoNonce(_))));
}

struct Fixed(Option<Nonce>);

#[tonic::async_trait]
impl NonceSource for Fixed {
    async fn draw(&self, _: Purpose) -> io::Result<Nonce> {
        self.0.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

async fn only_one_side_attests_where_the_policy_says_so(technology: &dyn Technology) {
    let fresh = node(technology);
    let cli = Endpoint::new(None, new_node(technology));
    let bootstrapper = Endpoint::new(fresh.attester(), anyone());
    let (near, far) = check(&cli, &bootstrapper, Purpose::Join).await;
    assert!(near.unwrap().node().is_some());
    assert!(far.unwrap().node().is_none());
}

async fn a_changed_image_is_refused_and_told_only_the_category(technology: &dyn Technology) {
    let changed = node(technology);
    changed.machine.change_image().unwrap();
    let client = Endpoint::new(changed.attester(), anyone());
    let server = Endpoint::new(None, new_node(technology));
    let (near, far) = check(&client, &server, Purpose::Join).await;
    assert!(matches!(near, Err(HandshakeError::RefusedByPeer(category)) if category == "attestation failed"));
    let Err(HandshakeError::NotAffirmed(refusal)) = far else {
        panic!("{far:?}")
    };
    assert_eq!(refusal.outcome(), Outcome::Contraindicated);
}

async fn a_warning_opens_no_session(technology: &dyn Technology) {
    let other_firmware = node(technology);
    other_firmware.machine.change_host().unwrap();
    let client = Endpoint::new(other_firmware.attester(), anyone());
    let server = Endpoint::new(None, new_node(technology));
    let (_, far) = check(&client, &server, Purpose::Join).await;
    let Err(HandshakeError::NotAffirmed(refusal)) = far else {
        panic!("{far:?}")
    };
    assert_eq!(refusal.outcome(), Outcome::Warning);
}

async fn another_operators_node_is_refused(technology: &dyn Technology) {
    let machine = technology.boot_for(&OperatorPublicKey::new([1; 32])).unwrap();
    let client = Endpoint::new(Some(machine.attester().unwrap()), anyone());
    let server = Endpoint::new(node(technology).attester(), new_node(technology));
    let (near, far) = check(&client, &server, Purpose::Join).await;
    let Err(HandshakeError::NotAffirmed(refusal)) = far else {
        panic!("{far:?}")
    };
    assert_eq!(refusal.result.findings().count(), 1, "{refusal}");
    assert!(matches!(near, Err(HandshakeError::RefusedByPeer(_))));
}

async fn a_join_service_of_no_cluster_is_refused(technology: &dyn Technology) {
    let (joining, impostor) = (node(technology), node(technology));
    let client = Endpoint::new(joining.attester(), any_member(technology));
    let server = Endpoint::new(impostor.attester(), new_node(technology));
    let (near, _) = check(&client, &server, Purpose::Join).await;
    assert!(matches!(near, Err(HandshakeError::NotAffirmed(_))));
}

async fn a_join_service_of_another_cluster_is_refused(technology: &dyn Technology) {
    let (joining, foreign) = (node(technology), member(technology));
    let client = Endpoint::new(
        joining.attester(),
        attested(
            technology,
            ExpectedMembership::Of(Membership::new(ClusterId::new([9; 32]), NodeRole::ControlPlane)),
        ),
    );
    let server = Endpoint::new(foreign.attester(), new_node(technology));
    let (near, _) = check(&client, &server, Purpose::Join).await;
    assert!(matches!(near, Err(HandshakeError::NotAffirmed(_))));
}

async fn a_program_that_cannot_attest_is_not_let_in(technology: &dyn Technology) {
    let client = Endpoint::new(None, anyone());
    let server = Endpoint::new(None, new_node(technology));
    let (near, far) = check(&client, &server, Purpose::Join).await;
    assert!(matches!(near, Err(HandshakeError::CannotAttest)));
    assert!(far.is_err());
}

async fn a_purpose_that_is_not_offered_is_refused(technology: &dyn Technology) {
    let joining = node(technology);
    let client = Endpoint::new(joining.attester(), anyone());
    let server = Endpoint::new(None, new_node(technology));
    let (_, far) = check(&client, &server, Purpose::Recover).await;
    assert!(matches!(far, Err(HandshakeError::Purpose(purpose)) if purpose == "recover"));
}

/// Says that its Evidence is another technology's.
struct Relabelled {
    attester: Arc<dyn Attester>,
    variant: Variant,
}

impl Attester for Relabelled {
    fn variant(&self) -> Variant {
        self.variant
    }

    fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
        let evidence = self.attester.attest(parts)?;
        Ok(Evidence {
            variant: self.variant,
            ..evidence
        })
    }
}

#[tokio::test]
async fn evidence_is_appraised_by_the_verifier_of_its_own_variant_and_no_other() {
    let both = || {
        let new = ExpectedMembership::New;
        let accepted = verifiers(SOFTWARE_TPM, new).and(verifiers(SOFTWARE_KEY, new));
        Endpoint::new(None, PeerPolicy::Attested(Arc::new(accepted)))
    };
    for (technology, other) in [(SOFTWARE_TPM, SOFTWARE_KEY), (SOFTWARE_KEY, SOFTWARE_TPM)] {
        let honest = node(technology);
        let client = Endpoint::new(honest.attester(), anyone());
        let (near, far) = check(&client, &both(), Purpose::Join).await;
        assert_eq!(far.unwrap().node().unwrap().result().variant(), technology.variant());
        drop(near.unwrap());

        let only_other = Endpoint::new(None, new_node(other));
        let (near, _) = check(&client, &only_other, Purpose::Join).await;
        assert!(matches!(near, Err(HandshakeError::VariantNotAccepted(variant)) if variant == technology.variant()));

        let relabelled = Relabelled {
            attester: honest.attester.clone(),
            variant: other.variant(),
        };
        let client = Endpoint::new(Some(Arc::new(relabelled)), anyone());
        for server in [both(), only_other] {
            let (_, far) = check(&client, &server, Purpose::Join).await;
            let Err(HandshakeError::Appraisal(AppraisalError::NotAuthentic { variant, .. })) = far else {
                panic!("{far:?}")
            };
            assert_eq!(variant, other.variant());
        }
    }
}

/// The attacker terminates TLS with its own leaf on both sides and forwards every byte of the exchange.
async fn a_relayed_session_is_refused(technology: &dyn Technology) {
    let (joining, member) = (node(technology), member(technology));
    let client = Endpoint::new(joining.attester(), any_member(technology));
    let server = Endpoint::new(member.attester(), new_node(technology));
    let (near, relay_near) = duplex(64 * 1024);
    let (relay_far, far) = duplex(64 * 1024);
    let relay = async {
        let mut to_client = attacker_accepts(relay_near).await;
        let mut to_server = attacker_connects(relay_far).await;
        let _ = copy_bidirectional(&mut to_client, &mut to_server).await;
    };
    let purposes = [Purpose::Join];
    let (near, _, ()) = tokio::join!(
        client.connect(Purpose::Join, near),
        server.accept(&purposes, far),
        relay
    );
    must_be_bound_to_something_else(technology, near);
}

/// The attacker answers a server's question with the server's own Evidence.
async fn reflected_evidence_is_refused(technology: &dyn Technology) {
    let member = node(technology);
    let server = Endpoint::new(member.attester(), new_node(technology));
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let mut tls = attacker_connects(near).await;
        // The client speaks first, so it cannot know the server's nonce; direction and leaves differ as well.
        frame::write(&mut tls, hello(Some(vec![1; 32]))).await.unwrap();
        let Kind::Hello(_) = frame::read(&mut tls).await.unwrap() else {
            panic!("expected a hello")
        };
        let evidence = frame::read(&mut tls).await.unwrap();
        frame::write(&mut tls, accepted()).await.unwrap();
        frame::write(&mut tls, evidence).await.unwrap();
        let _ = frame::read(&mut tls).await;
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), attack);
    must_be_bound_to_something_else(technology, far);
}

/// The attacker lets a node attest to it and presents that Evidence in its own session, with the same nonce.
async fn replayed_evidence_is_refused(technology: &dyn Technology) {
    let joining = node(technology);
    let client = Endpoint::new(joining.attester(), anyone());
    let (near, far) = duplex(64 * 1024);
    let steal = async {
        let mut tls = attacker_accepts(far).await;
        let Kind::Hello(_) = frame::read(&mut tls).await.unwrap() else {
            panic!("expected a hello")
        };
        frame::write(&mut tls, hello(Some(Nonce::generate().as_bytes().to_vec())))
            .await
            .unwrap();
        let Kind::Verdict(_) = frame::read(&mut tls).await.unwrap() else {
            panic!("expected a verdict")
        };
        frame::read(&mut tls).await.unwrap()
    };
    let (_, evidence) = tokio::join!(client.connect(Purpose::Join, near), steal);

    let server = Endpoint::new(None, new_node(technology));
    let (near, far) = duplex(64 * 1024);
    let replay = async {
        let mut tls = attacker_connects(near).await;
        frame::write(&mut tls, hello(None)).await.unwrap();
        let Kind::Hello(_) = frame::read(&mut tls).await.unwrap() else {
            panic!("expected a hello")
        };
        frame::write(&mut tls, accepted()).await.unwrap();
        frame::write(&mut tls, evidence).await.unwrap();
        let _ = frame::read(&mut tls).await;
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), replay);
    must_be_bound_to_something_else(technology, far);
}

async fn a_peer_that_skips_its_evidence_is_refused(technology: &dyn Technology) {
    let server = Endpoint::new(None, new_node(technology));
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let mut tls = attacker_connects(near).await;
        frame::write(&mut tls, hello(None)).await.unwrap();
        let _ = frame::read(&mut tls).await;
        frame::write(&mut tls, accepted()).await.unwrap();
        frame::write(&mut tls, accepted()).await.unwrap();
        let _ = frame::read(&mut tls).await;
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), attack);
    assert!(matches!(far, Err(HandshakeError::UnexpectedMessage("evidence"))));
}

async fn another_version_of_the_exchange_is_refused(technology: &dyn Technology) {
    let Kind::Hello(mut former) = hello(None) else {
        unreachable!("made as a hello")
    };
    former.version = 1;
    let result = server_after_hello(technology, Kind::Hello(former)).await;
    assert!(matches!(result, Err(HandshakeError::Version(1))));
}

async fn a_short_nonce_is_refused(technology: &dyn Technology) {
    let result = server_after_hello(technology, hello(Some(vec![0; 31]))).await;
    assert!(matches!(result, Err(HandshakeError::NonceLength(31))));
}

async fn a_short_sealing_key_is_refused(technology: &dyn Technology) {
    let Kind::Hello(mut short) = hello(Some(vec![0; 32])) else {
        unreachable!("made as a hello")
    };
    short.sealing_key = Some(vec![0; 31]);
    let result = server_after_hello(technology, Kind::Hello(short)).await;
    assert!(matches!(result, Err(HandshakeError::SealingKey(_))));
}

async fn a_peer_that_does_not_accept_our_variant_gets_no_quote(technology: &dyn Technology) {
    let Kind::Hello(mut picky) = hello(Some(vec![0; 32])) else {
        unreachable!("made as a hello")
    };
    picky.accepts = vec!["dummy".into()];
    let result = server_after_hello(technology, Kind::Hello(picky)).await;
    let Err(HandshakeError::VariantNotAccepted(variant)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(variant, technology.variant());
}

async fn server_after_hello(technology: &dyn Technology, hello: Kind) -> Handshake {
    let member = node(technology);
    let server = Endpoint::new(member.attester(), anyone());
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let mut tls = attacker_connects(near).await;
        frame::write(&mut tls, hello).await.unwrap();
        let _ = frame::read(&mut tls).await;
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), attack);
    far
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_is_dropped() {
    const LIMIT: Duration = Duration::from_secs(5);
    let (mut whole, mut tls_alone) = (Limits::default(), Limits::default());
    whole.handshake = LIMIT;
    tls_alone.tls = LIMIT;
    for limits in [whole, tls_alone] {
        let endpoint = Endpoint::new(None, anyone()).with_limits(limits);
        let (near, _far) = duplex(64 * 1024);
        let accepted = endpoint.accept(&[Purpose::Join], near).await;
        assert!(matches!(accepted, Err(HandshakeError::TimedOut(LIMIT))), "{limits:?}");
        let (near, _far) = duplex(64 * 1024);
        let connected = endpoint.connect(Purpose::Join, near).await;
        assert!(matches!(connected, Err(HandshakeError::TimedOut(LIMIT))), "{limits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_after_tls_is_dropped() {
    let server = Endpoint::new(None, anyone());
    let limit = server.limits().handshake;
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let _tls = attacker_connects(near).await;
        tokio::time::sleep(2 * limit).await;
    };
    let purposes = [Purpose::Join];
    let result = tokio::select! {
        result = server.accept(&purposes, far) => result,
        () = attack => panic!("the peer was not dropped"),
    };
    assert!(matches!(result, Err(HandshakeError::TimedOut(dropped)) if dropped == limit));
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let server = Endpoint::new(None, anyone());
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let mut tls = attacker_connects(near).await;
        tls.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let _ = tls.flush().await;
        let _ = tls.read_u8().await;
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), attack);
    assert!(matches!(far, Err(HandshakeError::Io(error)) if error.kind() == io::ErrorKind::InvalidData));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let server = Endpoint::new(None, anyone());
    let (near, far) = duplex(64 * 1024);
    let attack = async {
        let mut config = (*Leaf::generate().client_config()).clone();
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
        let connected = TlsConnector::from(Arc::new(config))
            .connect(Leaf::server_name(), near)
            .await;
        if let Ok(mut tls) = connected {
            let _ = tls.read_u8().await;
        }
    };
    let purposes = [Purpose::Join];
    let (far, ()) = tokio::join!(server.accept(&purposes, far), attack);
    assert!(matches!(far, Err(HandshakeError::Io(_))));
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

async fn attacker_accepts(stream: DuplexStream) -> TlsStream<DuplexStream> {
    let tls = TlsAcceptor::from(Leaf::generate().server_config())
        .accept(stream)
        .await
        .unwrap();
    TlsStream::Server(tls)
}

async fn attacker_connects(stream: DuplexStream) -> TlsStream<DuplexStream> {
    let tls = TlsConnector::from(Leaf::generate().client_config())
        .connect(Leaf::server_name(), stream)
        .await
        .unwrap();
    TlsStream::Client(tls)
}

fn hello(nonce: Option<Vec<u8>>) -> Kind {
    let accepts = Variant::ALL.iter().map(ToString::to_string).collect();
    Kind::Hello(Hello {
        version: 2,
        purpose: "join".into(),
        nonce,
        accepts,
        sealing_key: None,
    })
}

fn accepted() -> Kind {
    Kind::Verdict(Verdict {
        accepted: true,
        category: String::new(),
    })
}
