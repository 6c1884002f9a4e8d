use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use attestation::ReportBinding;
use measurements::{PcrIndex, PcrValue, PcrValues};
use tpm2_protocol::TpmWriter;
use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::data::{
    Tpm2bData, Tpm2bEvent, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmRh, TpmSt, TpmlPcrSelection,
    TpmsAuthCommand, TpmsPcrSelect, TpmsPcrSelection, TpmtSigScheme,
};
use tpm2_protocol::frame::{
    TpmCreatePrimaryCommand, TpmFlushContextCommand, TpmFrame, TpmPcrEventCommand, TpmPcrReadCommand,
    TpmPcrReadResponse, TpmQuoteCommand, TpmUnmarshalBody, tpm_marshal_command,
};

use crate::key;

/// The largest command or response (TPM 2.0 part 2, `TPM2_MAX_COMMAND_SIZE` of common implementations).
const MAX_FRAME_LEN: usize = 4096;
/// Tag, size and response code (part 1, section 18.3).
const HEADER_LEN: usize = 10;
/// `TPM_ST_SESSIONS` (part 2, section 6.9).
const TAG_SESSIONS: u16 = 0x8002;
/// `TPM_RC_YIELDED`, `TPM_RC_TESTING` and `TPM_RC_RETRY` (part 2, section 6.6.3): nothing is wrong, ask again.
const ASK_AGAIN: [u32; 3] = [0x908, 0x90A, 0x922];
/// How often a busy TPM is retried, and how long to wait in between.
const ATTEMPTS: usize = 50;
const BUSY_DELAY: Duration = Duration::from_millis(20);
/// Registers change between reading and quoting only while a node boots; each such race costs one more attempt.
const CONSISTENT_READ_ATTEMPTS: usize = 5;

/// Carries one command to a TPM and its response back.
pub trait Transport: Send {
    /// Sends a command and reads the response, both whole frames.
    ///
    /// # Errors
    /// When the channel fails.
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;
}

/// The kernel's resource-managed device, `/dev/tpmrm0`: it keeps the objects of different programs apart and flushes
/// ours when we close it.
pub struct DeviceTransport(File);

impl DeviceTransport {
    /// Opens the device.
    ///
    /// # Errors
    /// When it does not exist or may not be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }
}

impl Transport for DeviceTransport {
    /// The device takes a command in one write and gives its response in one read.
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let written = self.0.write(command)?;
        if written != command.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the TPM device accepted only part of a command",
            ));
        }
        let mut response = vec![0; MAX_FRAME_LEN];
        let read = self.0.read(&mut response)?;
        response.truncate(read);
        Ok(response)
    }
}

/// A software TPM's data socket, which speaks raw frames.
pub struct SocketTransport(UnixStream);

impl SocketTransport {
    /// Connects to the socket.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        UnixStream::connect(path).map(Self)
    }
}

impl Transport for SocketTransport {
    fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(command)?;
        let mut response = vec![0; HEADER_LEN];
        self.0.read_exact(&mut response)?;
        let size = response_size(&response).filter(|size| (HEADER_LEN..=MAX_FRAME_LEN).contains(size));
        let size =
            size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "response with an impossible size"))?;
        response.resize(size, 0);
        self.0.read_exact(&mut response[HEADER_LEN..])?;
        Ok(response)
    }
}

fn response_size(header: &[u8]) -> Option<usize> {
    let size = header.get(2..6)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(size)).ok()
}

/// A TPM command failed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The channel to the TPM failed.
    #[error("cannot reach the TPM")]
    Io(#[from] io::Error),
    /// The TPM refused the command.
    #[error("{command} failed with response code {code:#x}")]
    Refused {
        /// Name of the command in TPM 2.0 part 3.
        command: &'static str,
        /// Response code (part 2, section 6.6).
        code: u32,
    },
    /// The TPM's answer is not a response to the command.
    #[error("the TPM's response to {command} is malformed")]
    Malformed {
        /// Name of the command.
        command: &'static str,
    },
    /// The TPM does not have the SHA-256 bank, or not these registers in it.
    #[error("the TPM has no PCR {0} in its SHA-256 bank")]
    NoSuchPcr(PcrIndex),
    /// The registers kept changing between reading and quoting.
    #[error("the PCRs changed during {CONSISTENT_READ_ATTEMPTS} attempts to quote them")]
    Inconsistent,
}

/// A successful response: its handle, if the command returns one, and its parameters.
struct Response {
    body: Vec<u8>,
    sessions: bool,
}

/// A quote as the TPM made it.
pub(crate) struct Quote {
    /// `TPMS_ATTEST`, the bytes that are signed.
    pub(crate) attest: Vec<u8>,
    /// `TPMT_SIGNATURE`, the signature over `attest`.
    pub(crate) signature: Vec<u8>,
}

/// A TPM 2.0 with the few commands we need.
pub struct Tpm {
    transport: Box<dyn Transport>,
}

impl Tpm {
    /// Uses a TPM behind any transport.
    #[must_use]
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self {
            transport: Box::new(transport),
        }
    }

    /// Reads registers of the SHA-256 bank (`TPM2_PCR_Read`).
    ///
    /// # Errors
    /// When the TPM fails or lacks one of them.
    pub fn read_pcrs(&mut self, indices: &[PcrIndex]) -> Result<PcrValues, TpmError> {
        let mut values = PcrValues::new();
        // The TPM returns at most eight digests at a time (part 2, TPML_DIGEST).
        for some in indices.chunks(8) {
            let command = TpmPcrReadCommand {
                handles: [],
                pcr_selection_in: sha256_selection(some),
            };
            let response = self.run("TPM2_PCR_Read", &command, false)?;
            let read: TpmPcrReadResponse = response.unmarshal("TPM2_PCR_Read", 0)?;
            let mut sorted = some.to_vec();
            sorted.sort_unstable();
            if read.pcr_values.len() != sorted.len() || read.pcr_selection_out != sha256_selection(some) {
                return Err(TpmError::NoSuchPcr(sorted[0]));
            }
            for (index, digest) in sorted.into_iter().zip(read.pcr_values.iter()) {
                let bytes = digest.as_ref().try_into().map_err(|_| TpmError::Malformed {
                    command: "TPM2_PCR_Read",
                })?;
                values.insert(index, PcrValue::new(bytes));
            }
        }
        Ok(values)
    }

    /// Extends a register with the hash of some data, in every bank (`TPM2_PCR_Event`).
    ///
    /// # Errors
    /// When the TPM fails.
    ///
    /// # Panics
    /// When the data is longer than 1024 bytes.
    pub fn extend_with_event(&mut self, index: PcrIndex, data: &[u8]) -> Result<(), TpmError> {
        let event_data = Tpm2bEvent::try_from(data).expect("an event has at most 1024 bytes (part 2, TPM2B_EVENT)");
        let command = TpmPcrEventCommand {
            handles: [TpmHandle::new(u32::from(index.get()))],
            event_data,
        };
        self.run("TPM2_PCR_Event", &command, true).map(drop)
    }

    /// Makes the attestation key: a primary key of the endorsement hierarchy, the same after every boot of one TPM.
    /// Gives its handle and `TPMT_PUBLIC`.
    pub(crate) fn create_attestation_key(&mut self) -> Result<(u32, Vec<u8>), TpmError> {
        const NAME: &str = "TPM2_CreatePrimary";
        let command = TpmCreatePrimaryCommand {
            handles: [TpmHandle::new(TpmRh::Endorsement.value())],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: key::template() },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let response = self.run(NAME, &command, true)?;
        let handle = response.handle(NAME)?;
        let public = take_sized(&mut response.parameters(NAME, 1)?, NAME)?.to_vec();
        Ok((handle, public))
    }

    /// Forgets a transient object (`TPM2_FlushContext`).
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        let command = TpmFlushContextCommand {
            handles: [],
            flush_handle: TpmHandle::new(handle),
        };
        self.run("TPM2_FlushContext", &command, false).map(drop)
    }

    /// Quotes registers of the SHA-256 bank over the binding, and reads them such that values and quote agree.
    pub(crate) fn quote(
        &mut self,
        key: u32,
        indices: &[PcrIndex],
        binding: &ReportBinding,
    ) -> Result<(PcrValues, Quote), TpmError> {
        for _ in 0..CONSISTENT_READ_ATTEMPTS {
            let before = self.read_pcrs(indices)?;
            let quote = self.quote_once(key, indices, binding)?;
            if self.read_pcrs(indices)? == before {
                return Ok((before, quote));
            }
        }
        Err(TpmError::Inconsistent)
    }

    fn quote_once(&mut self, key: u32, indices: &[PcrIndex], binding: &ReportBinding) -> Result<Quote, TpmError> {
        const NAME: &str = "TPM2_Quote";
        let command = TpmQuoteCommand {
            handles: [TpmHandle::new(key)],
            // Some TPMs have no room for more than a SHA-256 digest.
            qualifying_data: Tpm2bData::try_from(binding.first_half().as_slice())
                .expect("32 bytes of qualifying data fit (part 2, TPM2B_DATA)"),
            in_scheme: TpmtSigScheme::default(),
            pcr_select: sha256_selection(indices),
        };
        let response = self.run(NAME, &command, true)?;
        // The signature is over these very bytes, so they are cut out and never parsed and written again.
        let mut parameters = response.parameters(NAME, 0)?;
        let attest = take_sized(&mut parameters, NAME)?.to_vec();
        Ok(Quote {
            attest,
            signature: parameters.to_vec(),
        })
    }

    fn run<C: TpmFrame>(&mut self, name: &'static str, command: &C, authorize: bool) -> Result<Response, TpmError> {
        let frame = marshal(command, authorize);
        for _ in 0..ATTEMPTS {
            let response = self.transport.transact(&frame)?;
            let (code, response) = Response::parse(response).ok_or(TpmError::Malformed { command: name })?;
            match code {
                0 => return Ok(response),
                busy if ASK_AGAIN.contains(&busy) => std::thread::sleep(BUSY_DELAY),
                code => return Err(TpmError::Refused { command: name, code }),
            }
        }
        Err(TpmError::Refused {
            command: name,
            code: ASK_AGAIN[2],
        })
    }
}

/// Every hierarchy and key we use has an empty password (`TPM_RS_PW`, part 1, section 19.4).
fn marshal<C: TpmFrame>(command: &C, authorize: bool) -> Vec<u8> {
    let password = TpmsAuthCommand {
        session_handle: TpmHandle::new(TpmRh::Pw.value()),
        ..TpmsAuthCommand::default()
    };
    let (tag, sessions) = if authorize {
        (TpmSt::Sessions, &[password][..])
    } else {
        (TpmSt::NoSessions, &[][..])
    };
    let mut buffer = [0; MAX_FRAME_LEN];
    let mut writer = TpmWriter::new(&mut buffer);
    tpm_marshal_command(command, tag, sessions, &mut writer).expect("our commands are well-formed and short");
    let length = writer.len();
    buffer[..length].to_vec()
}

impl Response {
    /// Splits a frame into its response code and the rest.
    fn parse(frame: Vec<u8>) -> Option<(u32, Self)> {
        if response_size(&frame)? != frame.len() {
            return None;
        }
        let tag = u16::from_be_bytes(frame.get(0..2)?.try_into().ok()?);
        let code = u32::from_be_bytes(frame.get(6..HEADER_LEN)?.try_into().ok()?);
        let body = frame.get(HEADER_LEN..)?.to_vec();
        Some((
            code,
            Self {
                body,
                sessions: tag == TAG_SESSIONS,
            },
        ))
    }

    fn handle(&self, command: &'static str) -> Result<u32, TpmError> {
        let bytes = self.body.first_chunk().ok_or(TpmError::Malformed { command })?;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// The parameter area after that many handles; with sessions its length comes first (part 1, section 18.4).
    fn parameters(&self, command: &'static str, handles: usize) -> Result<&[u8], TpmError> {
        let malformed = TpmError::Malformed { command };
        let Some(rest) = self.body.get(handles * 4..) else {
            return Err(malformed);
        };
        if !self.sessions {
            return Ok(rest);
        }
        let Some((length, rest)) = rest.split_first_chunk() else {
            return Err(malformed);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        rest.get(..length).ok_or(malformed)
    }

    fn unmarshal<R: TpmUnmarshalBody>(&self, command: &'static str, handles: usize) -> Result<R, TpmError> {
        let parameters = self.parameters(command, handles)?;
        R::unmarshal_body(&self.body[..handles * 4], parameters).map_err(|_| TpmError::Malformed { command })
    }
}

/// Takes a structure that is preceded by its length in two bytes (`TPM2B`, part 2, section 10.4).
fn take_sized<'a>(bytes: &mut &'a [u8], command: &'static str) -> Result<&'a [u8], TpmError> {
    let (length, rest) = bytes.split_first_chunk().ok_or(TpmError::Malformed { command })?;
    let length = usize::from(u16::from_be_bytes(*length));
    if rest.len() < length {
        return Err(TpmError::Malformed { command });
    }
    let (taken, rest) = rest.split_at(length);
    *bytes = rest;
    Ok(taken)
}

/// Selects registers of the SHA-256 bank: one bit each, register 0 first (part 2, section 10.6).
fn sha256_selection(indices: &[PcrIndex]) -> TpmlPcrSelection {
    let mut bits = [0_u8; 3];
    for index in indices {
        bits[usize::from(index.get() / 8)] |= 1 << (index.get() % 8);
    }
    let pcr_select = TpmsPcrSelect::try_from(bits.as_slice()).expect("three bytes select 24 registers");
    let mut selection = TpmlPcrSelection::default();
    selection
        .try_push(TpmsPcrSelection {
            hash: TpmAlgId::Sha256,
            pcr_select,
        })
        .expect("a list of one bank is within the limit");
    selection
}
