use std::sync::Arc;

use attestation::{AttestError, BindingParts, DeviceError, Evidence, MeasuringAttester, ShownStatements};
use cluster_types::Variant;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;

/// How many calls of one socket may wait. A service has 128 connections (`Limits` in `crates/attested-tls`), each with a handshake at most,
/// and calls that were given up keep their place until they are done.
const QUEUE: usize = 256;

/// The device of this machine, which does one thing at a time.
#[derive(Clone)]
pub(crate) struct Device {
    attester: Arc<dyn MeasuringAttester>,
    turn: Arc<Mutex<()>>,
}

/// Those who ask through one socket. Only one of them at a time waits for the device, so that two sockets take turns however many calls
/// either has.
#[derive(Clone)]
pub(crate) struct Queue {
    device: Device,
    places: Arc<Semaphore>,
    turn: Arc<Mutex<()>>,
}

/// The device did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("{QUEUE} calls are waiting for the device")]
    Busy,
    #[error(transparent)]
    Attest(#[from] AttestError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the call was cut off")]
    CutOff,
}

impl Device {
    pub(crate) fn new(attester: Arc<dyn MeasuringAttester>) -> Self {
        Self {
            attester,
            turn: Arc::default(),
        }
    }
}

impl Queue {
    pub(crate) fn for_device(device: &Device) -> Self {
        Self {
            device: device.clone(),
            places: Arc::new(Semaphore::new(QUEUE)),
            turn: Arc::default(),
        }
    }

    pub(crate) fn variant(&self) -> Variant {
        self.device.attester.variant()
    }

    pub(crate) async fn shown(&self) -> Result<ShownStatements, NoAnswer> {
        let statements = self.in_turn(|attester| attester.statements()).await??;
        Ok(statements.shown())
    }

    pub(crate) async fn attest(&self, parts: BindingParts) -> Result<Evidence, NoAnswer> {
        Ok(self.in_turn(move |attester| attester.attest(&parts)).await??)
    }

    /// A call that is given up keeps the device until it is done with it.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn MeasuringAttester) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| NoAnswer::Busy)?;
        let own_turn = self.turn.clone().lock_owned().await;
        let turn = self.device.turn.clone().lock_owned().await;
        let attester = self.device.attester.clone();
        let done = spawn_blocking(move || {
            let _held = (place, own_turn, turn);
            work(&*attester)
        });
        done.await.map_err(|_| NoAnswer::CutOff)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use attestation::{AttestedIdentity, Attester, MeasuredStatements, Membership, Nonce};
    use cluster_types::OperatorPublicKey;
    use measurements::ReferenceValues;

    use super::*;

    /// Attests whenever the test says so, and keeps in which order it did.
    struct Held {
        may_go_on: StdMutex<Receiver<()>>,
        attested: Arc<StdMutex<Vec<BindingParts>>>,
    }

    impl Attester for Held {
        fn variant(&self) -> Variant {
            Variant::ALL[0]
        }

        fn attest(&self, parts: &BindingParts) -> Result<Evidence, AttestError> {
            // The test has ended if it says nothing any more.
            let _ = self.may_go_on.lock().unwrap().recv();
            self.attested.lock().unwrap().push(*parts);
            Ok(Evidence {
                variant: self.variant(),
                body: Vec::new(),
            })
        }
    }

    impl MeasuringAttester for Held {
        fn identity(&self) -> AttestedIdentity {
            unreachable!("no caller is told")
        }

        fn own_image(&self) -> Result<ReferenceValues, DeviceError> {
            unreachable!("no caller is told")
        }

        fn statements(&self) -> Result<MeasuredStatements, DeviceError> {
            unreachable!("not tested here")
        }

        fn measure_operator(&self, _: &OperatorPublicKey) -> Result<(), DeviceError> {
            unreachable!("the daemon measures nothing")
        }

        fn measure_membership(&self, _: &Membership) -> Result<(), DeviceError> {
            unreachable!("the daemon measures nothing")
        }
    }

    fn device() -> (Device, Sender<()>, Arc<StdMutex<Vec<BindingParts>>>) {
        let (go_on, may_go_on) = channel();
        let attested = Arc::default();
        let held = Held {
            may_go_on: StdMutex::new(may_go_on),
            attested: Arc::clone(&attested),
        };
        (Device::new(Arc::new(held)), go_on, attested)
    }

    fn parts(byte: u8) -> BindingParts {
        BindingParts::Nonce(Nonce::new([byte; 32]))
    }

    async fn waiting(queue: &Queue, calls: usize) {
        while queue.places.available_permits() > QUEUE - calls {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_call_for_which_there_is_no_place_is_refused() {
        let (device, go_on, _) = device();
        let queue = Queue::for_device(&device);
        let call = || {
            let queue = queue.clone();
            tokio::spawn(async move { queue.attest(parts(1)).await })
        };
        let calls: Vec<_> = (0..QUEUE).map(|_| call()).collect();
        waiting(&queue, QUEUE).await;
        assert!(matches!(queue.attest(parts(2)).await, Err(NoAnswer::Busy)));
        for call in calls {
            go_on.send(()).unwrap();
            call.await.unwrap().unwrap();
        }
        go_on.send(()).unwrap();
        queue.attest(parts(2)).await.unwrap();
    }

    #[tokio::test]
    async fn a_flood_on_one_socket_delays_the_other_by_one_call() {
        let (device, go_on, attested) = device();
        let [flooded, other] = [&device, &device].map(Queue::for_device);
        let call = |queue: &Queue, parts| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.attest(parts).await })
        };
        let flood: Vec<_> = (0..QUEUE).map(|_| call(&flooded, parts(1))).collect();
        waiting(&flooded, QUEUE).await;
        let single = call(&other, parts(2));
        waiting(&other, 1).await;
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        single.await.unwrap().unwrap();
        let before = attested.lock().unwrap().iter().filter(|one| **one == parts(1)).count();
        assert!(before <= 1, "{before} calls came first");
        drop((go_on, flood));
    }
}
