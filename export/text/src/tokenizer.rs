//! The tokenizer: text to ids and ids to text. `check` validates its file, `library` loads it,
//! `control` finds the tokens that begin and end, `stream` decodes id by id, `train` makes new
//! ones.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::DecoderWrapper;

use crate::bytes::token_bytes;
use crate::check;
use crate::control::{self, ControlTokens};
use crate::cuts::{Cuts, SIZES, Sizes};
use crate::error::TextError;
use crate::library;
use crate::special::{SpecialToken, SpecialTokens};
use crate::tokenizer_json::{self, AddedEntry, TokenizerJson};
use crate::whitespace;
use crate::words::WordIds;

pub(crate) use crate::control::EOT;

#[cfg(test)]
mod tests;

/// A checked tokenizer.
///
/// Truncation, padding and the post-processor of the file are not used: text in, all its ids out.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    cuts: Cuts,
    /// Where words can be found without the library.
    words: Option<WordIds>,
    path: PathBuf,
    json: Vec<u8>,
    vocab_size: usize,
    special: SpecialTokens,
    control: ControlTokens,
    /// What `tokenizer_config.json` beside the file says.
    config: Map<String, Value>,
    assumed: Option<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of the byte-pair kind, and what the files beside it declare: the
    /// tokens that begin and end a document, and whether texts begin with one.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let config = control::declared_beside(path)?;
        Self::with_config(path, &tokenizer_json::read(path)?, config)
    }

    /// The same from bytes already in memory; `path` is only for messages.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, TextError> {
        Self::with_config(path, bytes, Map::new())
    }

    /// `config` is the content of a `tokenizer_config.json`.
    pub(crate) fn with_config(
        path: &Path,
        bytes: &[u8],
        config: Map<String, Value>,
    ) -> Result<Self, TextError> {
        let file = check::check(path, bytes)?;
        let inner = library::load(path, bytes)?;
        let tokenizer = Self {
            cuts: Cuts::of(&inner, &file.model.vocab),
            words: WordIds::of(&inner, &file.added_tokens),
            inner,
            path: path.to_owned(),
            json: bytes.to_vec(),
            vocab_size: vocab_size(&file),
            special: SpecialTokens::of(&file),
            control: ControlTokens::find(&file, &config),
            config,
            assumed: None,
        };
        tokenizer.agrees_with(&file)?;
        Ok(tokenizer)
    }

    /// The same tokenizer with these control tokens.
    pub(crate) fn with_control(self, control: ControlTokens) -> Self {
        Self { control, ..self }
    }

    /// The largest id plus one: rows of the embedding. Added tokens are included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of a text, without any token around it. Text that spells a special token, such as
    /// `<|eot_id|>`, stays text.
    ///
    /// A long text is encoded in pieces, so that it takes little memory; the ids are those of the
    /// whole. An error only for a text with a word of megabytes, or with hundreds of thousands of
    /// whitespace characters in a row: the library would silently stop finding words there.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        whitespace::check(text).map_err(|what| self.encode_error(what))?;
        match self.ids_by_word(text) {
            Some(ids) => Ok(ids),
            None => self.encode_in_pieces(text, SIZES),
        }
    }

    /// The ids by the fast way, where it is sure to give those of the library.
    pub(crate) fn ids_by_word(&self, text: &str) -> Option<Vec<u32>> {
        self.words.as_ref()?.encode(&self.inner, text)
    }

    pub(crate) fn encode_in_pieces(&self, text: &str, sizes: Sizes) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        self.each_piece(text, sizes, |_, piece| {
            ids.extend_from_slice(self.inner.encode_fast(piece, false)?.get_ids());
            Ok(())
        })?;
        Ok(ids)
    }

    #[cfg(test)]
    pub(crate) fn cuts(&self) -> Cuts {
        self.cuts
    }

    /// The ids of a text and, for each, the bytes of the text that it stands for.
    pub(crate) fn encode_with_ranges(
        &self,
        text: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, TextError> {
        let mut all = Vec::new();
        self.each_piece(text, SIZES, |start, piece| {
            // Not `encode_fast`, which leaves the offsets out.
            let encoding = self.inner.encode(piece, false)?;
            let ranges = encoding.get_offsets().iter();
            let ranges = ranges.map(|(begin, end)| start + begin..start + end);
            all.extend(encoding.get_ids().iter().copied().zip(ranges));
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls `encode` with each piece of a text and where it begins.
    fn each_piece(
        &self,
        text: &str,
        sizes: Sizes,
        mut encode: impl FnMut(usize, &str) -> tokenizers::Result<()>,
    ) -> Result<(), TextError> {
        whitespace::check(text).map_err(|what| self.encode_error(what))?;
        let mut start = 0;
        while start < text.len() {
            let rest = &text[start..];
            let next = self.cuts.next(&self.inner, rest, sizes);
            let (end, next) = next.map_err(|what| self.encode_error(what))?;
            encode(start, &rest[..end]).map_err(|error| self.encode_error(error.to_string()))?;
            start += next;
        }
        Ok(())
    }

    pub(crate) fn encode_error(&self, what: String) -> TextError {
        TextError::Encode { path: self.path.clone(), what }
    }

    /// The ids of a whole document as pretraining reads it: after [`Tokenizer::first`] and before
    /// [`Tokenizer::eos`], where the tokenizer has them.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let body = self.encode(text)?;
        Ok(self.first().into_iter().chain(body).chain(self.eos()).collect())
    }

    /// The text of ids; special tokens and ids that name no token are skipped, bytes that make no
    /// character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_else(|_| {
            // No decoder in use can fail today; if one ever does, show the bare tokens.
            ids.iter().filter_map(|id| self.plain_token(*id)).collect()
        })
    }

    /// The id of a token by its spelling in the file (`Ġthe`, `<|eot_id|>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token in the file, special ones included.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for; those of its spelling for a special token, none for an id
    /// without a token. A token may be a part of a character.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.plain_token(id) else {
            return self.spelling(id).unwrap_or_default().into_bytes();
        };
        if self.is_byte_level() { token_bytes(&token) } else { self.decode(&[id]).into_bytes() }
    }

    /// Whether an id stands for no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_token(id).is_some()
    }

    /// The id of the special token that `text` spells, and nothing else.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        self.special_at(text).filter(|token| token.spelling == text).map(|token| token.id)
    }

    /// The text of ids with the special ones as they are spelled.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        let is_plain = |id: &u32| self.special_token(*id).is_none();
        let mut text = String::new();
        // In runs and not token by token: a character may lie across several of them.
        for run in ids.chunk_by(|a, b| is_plain(a) == is_plain(b)) {
            if is_plain(&run[0]) {
                text += &self.decode(run);
            } else {
                text.extend(run.iter().filter_map(|id| self.special_spelling(*id)));
            }
        }
        text
    }

    /// Begins a document: what `tokenizer_config.json`, `config.json` or the post-processor names,
    /// else `<|begin_of_text|>` or `<s>`.
    pub fn bos(&self) -> Option<u32> {
        self.control.bos
    }

    /// The token before every text; `None` where the tokenizer puts none there
    /// (`add_bos_token = false`).
    pub fn first(&self) -> Option<u32> {
        self.control.bos.filter(|_| self.control.adds_bos)
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub(crate) fn adds_bos(&self) -> bool {
        self.first().is_some()
    }

    /// Ends a document: `<|end_of_text|>`, `<|endoftext|>` or `</s>`, else the declared token.
    pub fn eos(&self) -> Option<u32> {
        self.control.document_end
    }

    /// What templates write as `eos_token`: the declared token, which in chat models often ends a
    /// turn; else [`Tokenizer::eos`].
    pub fn eos_token(&self) -> Option<u32> {
        self.control.eos_token.or(self.control.document_end)
    }

    /// Ends a turn of a chat: `<|eot_id|>`, if it is an added token.
    pub fn eot(&self) -> Option<u32> {
        self.control.eot
    }

    /// The content of the `tokenizer_config.json` beside the file; empty without one.
    pub(crate) fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Identifies the tokens that begin and end, which files beside the tokenizer can change.
    pub fn control_identity(&self) -> String {
        format!("{:?}", self.control)
    }

    /// Which tokens begin and end.
    pub(crate) fn control(&self) -> ControlTokens {
        self.control
    }

    /// The exact bytes this was loaded from, to copy beside checkpoints.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// What its file does not say and had to be assumed: worth a line to the user.
    pub fn assumed(&self) -> Option<&str> {
        self.assumed.as_deref()
    }

    pub(crate) fn assuming(self, assumed: Option<String>) -> Self {
        Self { assumed, ..self }
    }

    /// The file this was loaded from, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The special token that a text begins with; the longest spelling wins.
    pub(crate) fn special_at(&self, text: &str) -> Option<&SpecialToken> {
        self.special.at(text)
    }

    /// The special token with this id.
    pub(crate) fn special_token(&self, id: u32) -> Option<&SpecialToken> {
        self.special.of_id(id)
    }

    /// The other special tokens that `tokenizer_config.json` names, such as `pad_token`, with their
    /// spelling.
    pub(crate) fn declared_tokens(&self) -> Vec<(String, String)> {
        control::other_tokens(&self.config)
    }

    /// How a special token is spelled.
    pub(crate) fn special_spelling(&self, id: u32) -> Option<&str> {
        self.special_token(id).map(|token| token.spelling.as_str())
    }

    /// The spelling of an id that [`Tokenizer::decode`] would show.
    pub(crate) fn plain_token(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        // By the library's own list, so that this is what its `decode` skips.
        (!self.inner.get_added_vocabulary().is_special_token(&token)).then_some(token)
    }

    /// Whether decoding is nothing but the concatenated bytes of the tokens.
    pub(crate) fn is_byte_level(&self) -> bool {
        matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }

    /// The library numbers added tokens itself and only logs where the file says otherwise.
    fn agrees_with(&self, file: &TokenizerJson) -> Result<(), TextError> {
        for AddedEntry { id, content, special, .. } in &file.added_tokens {
            // A gap in the ids is where file and library part: it counts on from the largest id.
            let got = self.token_id(content);
            if got.map(u64::from) != Some(*id) {
                let next = got.map_or("another".to_owned(), |next| next.to_string());
                let what = format!("ids must follow without a gap; expected {next}, got {id}");
                return Err(TextError::added(&self.path, content, what));
            }
            // Text of unknown letters does become the unknown token; no other special one may come
            // from text.
            let unknown = file.model.unk_token.as_ref() == Some(content);
            if *special && !unknown && self.encode(content)?.iter().any(|i| u64::from(*i) == *id) {
                let (path, token) = (self.path.clone(), content.clone());
                return Err(TextError::SpecialFromText { path, token });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

fn vocab_size(file: &TokenizerJson) -> usize {
    let vocab = file.model.vocab.0.iter().map(|(_, id)| *id);
    let added = file.added_tokens.iter().map(|token| token.id);
    // Not the number of tokens: ids may have gaps, and each is a row.
    vocab.chain(added).max().map_or(0, |id| id as usize + 1)
}
