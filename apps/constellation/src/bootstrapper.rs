//! Sessions with the bootstrapper of a node that is not part of the cluster yet, or not any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, anyhow};
use attestation::{Purpose, Verifiers};
use attested_tls::{AttestedNode, Endpoint, HandshakeError, Limits, PeerPolicy, channel};
use infrastructure::{Machine, Provider};
use polling::Failed;
use tonic::transport::Channel;

use crate::advice::advise;
use crate::machines;

/// The least time that a node gets to answer a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// Calls nodes, and hangs up unless one proves to be what it should.
pub(crate) struct Caller<'a> {
    provider: &'a dyn Provider,
    endpoint: Endpoint,
    begun: Instant,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(provider: &'a dyn Provider, verifiers: Verifiers) -> Self {
        Self {
            provider,
            endpoint: Endpoint::new(None, PeerPolicy::Attested(Arc::new(verifiers))),
            begun: Instant::now(),
        }
    }

    /// One attempt. A node that answers but is not the expected one is not tried again.
    pub(crate) async fn call(
        &self,
        node: &Machine,
        purpose: Purpose,
    ) -> Result<(Channel, AttestedNode), Failed<Error>> {
        let endpoint = self.endpoint.clone().with_limits(Limits {
            tls: answer_limit(self.begun.elapsed()),
            ..Limits::default()
        });
        let address = format!("{}:{}", node.host, node.ports.bootstrapper);
        match channel(&endpoint, purpose, &address).await {
            Ok(session) => match session.node {
                Some(proven) => Ok((session.channel, proven)),
                None => Err(Failed::Stop(anyhow!("{} did not attest", node.name))),
            },
            Err(error) if is_booting(&error) => Err(machines::retry(self.provider, error)),
            Err(error) => Err(Failed::Stop(self.not_what_it_should_be(node, error))),
        }
    }

    /// A machine that has stopped explains more than its broken session.
    fn not_what_it_should_be(&self, node: &Machine, error: HandshakeError) -> Error {
        if let Err(stopped) = machines::check_running(self.provider) {
            return stopped;
        }
        let error = Error::new(error).context(format!("{} is not the expected node", node.name));
        advise(
            error,
            Vec::new(),
            "compare the image's reference-values.json with the image; if they belong together, someone has changed what the \
             node runs or whom it obeys",
        )
    }
}

/// The port forwarder accepts a connection long before the node does, and then offers it to the node at growing intervals; a new
/// connection gets through at once. A machine that boots slowly also answers slowly.
fn answer_limit(waited: Duration) -> Duration {
    (waited / 4).max(ANSWER_LIMIT)
}

/// The port forwarder accepts connections before anything on the node listens, and then resets them.
fn is_booting(error: &HandshakeError) -> bool {
    matches!(error, HandshakeError::Io(_) | HandshakeError::TimedOut(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_boots_slowly_is_given_more_time_to_answer() {
        let limits = [0, 16, 60, 400].map(|waited| answer_limit(Duration::from_secs(waited)).as_secs());
        assert_eq!(limits, [4, 4, 15, 100]);
    }
}
