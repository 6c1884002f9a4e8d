//! UEFI programs: the digest the firmware measures, and the sections the stub reads.
//!
//! Offsets are those of "PE Format" (Microsoft) for 64-bit images; the digest is that of "Windows Authenticode Portable Executable
//! Signature Format", which the UEFI Specification refers to and the TCG PC Client Platform Firmware Profile (section 2.3.4) measures.

use digest::{Digest, Hasher};

/// Offset of the file's offset of the PE header.
const PE_OFFSET: usize = 0x3c;
const FILE_HEADER_LEN: usize = 20;
const SECTION_HEADER_LEN: usize = 40;
const MAGIC_64_BIT: u16 = 0x20b;
/// Offsets in the optional header of a 64-bit image.
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const NUMBER_OF_DIRECTORIES: usize = 108;
const CERTIFICATE_DIRECTORY: usize = 112 + 4 * 8;

/// A parsed 64-bit UEFI program.
pub(crate) struct Pe<'file> {
    file: &'file [u8],
    optional_header: usize,
    size_of_headers: usize,
    certificates: Certificates,
    sections: Vec<Section<'file>>,
}

/// A section with a name of at most eight bytes.
struct Section<'file> {
    name: &'file str,
    offset: usize,
    size_in_file: usize,
    size_in_memory: usize,
}

struct Certificates {
    size: usize,
}

/// A file that is not a UEFI program that can be measured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ParsePeError {
    #[error("the file ends inside its headers or sections")]
    Truncated,
    #[error("the file has no PE signature")]
    Signature,
    #[error("the file is not a 64-bit program")]
    NotA64BitProgram,
    #[error("a section's name is not text")]
    SectionName,
    #[error("section {0} appears twice")]
    SectionTwice(String),
    #[error("section {0} is longer in memory than in the file")]
    SectionLongerThanFile(String),
}

impl<'file> Pe<'file> {
    pub(crate) fn parse(file: &'file [u8]) -> Result<Self, ParsePeError> {
        let pe = read_u32(file, PE_OFFSET)?;
        if bytes(file, pe, 4)? != b"PE\0\0" {
            return Err(ParsePeError::Signature);
        }
        let file_header = pe + 4;
        let optional_header = file_header + FILE_HEADER_LEN;
        if read_u16(file, optional_header)? != usize::from(MAGIC_64_BIT) {
            return Err(ParsePeError::NotA64BitProgram);
        }
        let size = match read_u32(file, optional_header + NUMBER_OF_DIRECTORIES)? {
            0..=4 => 0,
            _ => read_u32(file, optional_header + CERTIFICATE_DIRECTORY + 4)?,
        };
        let table = optional_header + read_u16(file, file_header + 16)?;
        let sections = (0..read_u16(file, file_header + 2)?)
            .map(|number| Section::parse(file, table + number * SECTION_HEADER_LEN));
        Ok(Self {
            file,
            optional_header,
            size_of_headers: read_u32(file, optional_header + SIZE_OF_HEADERS)?,
            certificates: Certificates { size },
            sections: sections.collect::<Result<_, _>>()?,
        })
    }

    /// The digest with which the firmware extends PCR 4 when it loads the program. It covers everything but checksum and certificates.
    pub(crate) fn authenticode(&self) -> Result<Digest, ParsePeError> {
        let mut hasher = Hasher::new();
        let checksum = self.optional_header + CHECKSUM;
        let directory = self.optional_header + CERTIFICATE_DIRECTORY;
        hasher.update(range(self.file, 0, checksum)?);
        hasher.update(range(self.file, checksum + 4, directory)?);
        hasher.update(range(self.file, directory + 8, self.size_of_headers)?);

        let mut sections: Vec<_> = self
            .sections
            .iter()
            .filter(|section| section.size_in_file > 0)
            .collect();
        sections.sort_by_key(|section| section.offset);
        let mut hashed = self.size_of_headers;
        for section in sections {
            hasher.update(bytes(self.file, section.offset, section.size_in_file)?);
            hashed += section.size_in_file;
        }
        // The digest also covers what follows the sections, except the certificates at the very end.
        let end = self
            .file
            .len()
            .checked_sub(self.certificates.size)
            .ok_or(ParsePeError::Truncated)?;
        if end > hashed {
            hasher.update(range(self.file, hashed, end)?);
        }
        Ok(hasher.finish())
    }

    /// The content of a section, as it will be in memory, or `None` if the program has no such section.
    pub(crate) fn section(&self, name: &str) -> Result<Option<&'file [u8]>, ParsePeError> {
        let mut sections = self.sections.iter().filter(|section| section.name == name);
        let Some(section) = sections.next() else {
            return Ok(None);
        };
        if sections.next().is_some() {
            return Err(ParsePeError::SectionTwice(name.to_owned()));
        }
        if section.size_in_memory > section.size_in_file {
            return Err(ParsePeError::SectionLongerThanFile(name.to_owned()));
        }
        bytes(self.file, section.offset, section.size_in_memory).map(Some)
    }

    /// The names of all sections, in the order of the file's table.
    pub(crate) fn section_names(&self) -> impl Iterator<Item = &'file str> {
        self.sections.iter().map(|section| section.name)
    }
}

impl<'file> Section<'file> {
    fn parse(file: &'file [u8], header: usize) -> Result<Self, ParsePeError> {
        let name = bytes(file, header, 8)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(Self {
            name: std::str::from_utf8(&name[..end]).map_err(|_| ParsePeError::SectionName)?,
            size_in_memory: read_u32(file, header + 8)?,
            size_in_file: read_u32(file, header + 16)?,
            offset: read_u32(file, header + 20)?,
        })
    }
}

fn bytes(file: &[u8], offset: usize, len: usize) -> Result<&[u8], ParsePeError> {
    range(file, offset, offset.checked_add(len).ok_or(ParsePeError::Truncated)?)
}

fn range(file: &[u8], from: usize, to: usize) -> Result<&[u8], ParsePeError> {
    file.get(from..to).ok_or(ParsePeError::Truncated)
}

fn read_u16(file: &[u8], offset: usize) -> Result<usize, ParsePeError> {
    let bytes = bytes(file, offset, 2)?;
    Ok(usize::from(u16::from_le_bytes(bytes.try_into().expect("two bytes"))))
}

fn read_u32(file: &[u8], offset: usize) -> Result<usize, ParsePeError> {
    let bytes = bytes(file, offset, 4)?;
    let value = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    usize::try_from(value).map_err(|_| ParsePeError::Truncated)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program with these sections, each padded to 16 bytes in the file, and with `tail` behind them.
    pub(crate) fn program(sections: &[(&str, &[u8])], tail: &[u8]) -> Vec<u8> {
        let optional_header = 0x40 + 4 + FILE_HEADER_LEN;
        let optional_header_len = 112 + 16 * 8;
        let table = optional_header + optional_header_len;
        let headers = (table + sections.len() * SECTION_HEADER_LEN).next_multiple_of(16);
        let mut file = vec![0; headers];
        let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(PE_OFFSET, &0x40u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x44 + 2, &(sections.len() as u16).to_le_bytes());
        put(0x44 + 16, &(optional_header_len as u16).to_le_bytes());
        put(optional_header, &MAGIC_64_BIT.to_le_bytes());
        put(optional_header + SIZE_OF_HEADERS, &(headers as u32).to_le_bytes());
        put(optional_header + NUMBER_OF_DIRECTORIES, &16u32.to_le_bytes());
        let mut offset = headers;
        for (number, (name, content)) in sections.iter().enumerate() {
            let header = table + number * SECTION_HEADER_LEN;
            let size_in_file = content.len().next_multiple_of(16);
            put(header, name.as_bytes());
            put(header + 8, &(content.len() as u32).to_le_bytes());
            put(header + 16, &(size_in_file as u32).to_le_bytes());
            put(header + 20, &(offset as u32).to_le_bytes());
            offset += size_in_file;
        }
        for (_, content) in sections {
            file.extend_from_slice(content);
            file.resize(file.len().next_multiple_of(16), 0);
        }
        file.extend_from_slice(tail);
        file
    }

    fn check(file: &[u8]) -> Digest {
        Pe::parse(file).unwrap().authenticode().unwrap()
    }

    #[test]
    fn section_ends_where_its_memory_ends() {
        let file = program(&[(".linux", b"kernel"), (".uname", b"6.12")], b"");
        let pe = Pe::parse(&file).unwrap();
        assert_eq!(pe.section(".linux").unwrap(), Some(&b"kernel"[..]));
        assert_eq!(pe.section(".uname").unwrap(), Some(&b"6.12"[..]));
        assert_eq!(pe.section(".splash").unwrap(), None);
    }

    #[test]
    fn two_sections_of_one_name_are_refused() {
        let file = program(&[(".linux", b"a"), (".linux", b"b")], b"");
        let error = Pe::parse(&file).unwrap().section(".linux").unwrap_err();
        assert_eq!(error, ParsePeError::SectionTwice(".linux".to_owned()));
    }

    #[test]
    fn digest_ignores_the_checksum_and_nothing_else() {
        let file = program(&[(".linux", b"kernel")], b"tail");
        let digest = check(&file);
        let optional_header = 0x40 + 4 + FILE_HEADER_LEN;
        let checksum = optional_header + CHECKSUM..optional_header + CHECKSUM + 4;
        // From the checksum to the number of directories, and the content. Changing these moves nothing else.
        let header = checksum.start..optional_header + NUMBER_OF_DIRECTORIES;
        for offset in header.chain(file.len() - 20..file.len()) {
            let mut changed = file.clone();
            changed[offset] ^= 1;
            assert_eq!(check(&changed) == digest, checksum.contains(&offset), "offset {offset}");
        }
    }

    #[test]
    fn certificates_at_the_end_are_not_hashed() {
        let unsigned = program(&[(".linux", b"kernel")], b"");
        let mut signed = program(&[(".linux", b"kernel")], &[7; 24]);
        let size = 0x40 + 4 + FILE_HEADER_LEN + CERTIFICATE_DIRECTORY + 4;
        signed[size] = 24;
        assert_eq!(check(&signed), check(&unsigned));
    }

    #[test]
    fn truncated_files_are_refused() {
        let file = program(&[(".linux", b"kernel")], b"");
        for len in 0..file.len() {
            let result = Pe::parse(&file[..len]).and_then(|pe| pe.authenticode());
            assert!(result.is_err(), "{len} bytes");
        }
    }
}
