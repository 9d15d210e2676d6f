//! What a run learns from its teacher, opened before the first step: the teacher itself, or the words that
//! were kept of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::kept::{KeptRequest, KeptTeacher, KeptWords, open_or_compute};
use super::{Distillation, DistillationBatch};
use crate::data::{LoaderSettings, PackedSequence, TokenCache};
use crate::distributed::{all_ok, assert_equal_across_ranks};
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::Monitor;
use crate::train::context::{RunContext, cache_dir, hash_model};
use crate::train::stage::evaluate::batch_of;
use crate::train::stage::kept_file::{KeptKey, KeptWork};
use crate::train::teacher::RunTeacher;

/// The objective, and what is known of the rows where the teacher is not there.
#[derive(Debug)]
pub(crate) struct Taught {
    pub(crate) objective: Distillation,
    kept: Option<KeptTeacher>,
}

impl Taught {
    /// Reads the teacher of a run, or the words that it says of these sets; `None` without a teacher.
    pub(crate) fn open(
        context: &RunContext,
        sets: &BTreeMap<String, TokenCache>,
        settings: LoaderSettings,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<Self>, TrainError> {
        let (Some(teacher), Some(distill)) = (&context.teacher, &context.recipe.distill) else {
            return Ok(None);
        };
        let mut objective = Distillation {
            terms: distill.terms(),
            relations: teacher.relations.clone(),
            teacher: None,
        };
        let Some(count) = distill.top_k else {
            if context.comm.world_size() > 1 {
                hash(context, teacher, monitor)?;
            }
            let read = context.read_teacher(teacher, monitor);
            objective.teacher = Some(all_ok(context.comm, read)?);
            return Ok(Some(Self { objective, kept: None }));
        };
        let hash = hash(context, teacher, monitor)?;
        let mut work = WordsWork { context, teacher, settings, count, hash, monitor, model: None };
        let words = sets.iter().map(|(set, cache)| Ok((set.clone(), work.words(set, cache)?)));
        let words: Result<_, TrainError> = words.collect();
        Ok(Some(Self { objective, kept: Some(KeptTeacher(words?)) }))
    }

    pub(crate) fn batch(&self, rows: &[PackedSequence]) -> DistillationBatch {
        let known = self.kept.as_ref().map(|kept| kept.of_rows(rows));
        DistillationBatch { rows: batch_of(rows), known }
    }
}

/// The hash of the teacher, which is the same on all ranks.
fn hash(
    context: &RunContext,
    teacher: &RunTeacher,
    monitor: &mut dyn Monitor,
) -> Result<String, TrainError> {
    let hash = all_ok(context.comm, hash_model(&teacher.path, monitor))?;
    let key_value = ("hash of the teacher".to_owned(), hash.clone());
    assert_equal_across_ranks(context.comm, &[key_value])?;
    Ok(hash)
}

/// What computing words needs beside the sets.
struct WordsWork<'a, 'b> {
    context: &'a RunContext<'b>,
    teacher: &'a RunTeacher,
    settings: LoaderSettings,
    count: usize,
    hash: String,
    monitor: &'a mut dyn Monitor,
    model: Option<LanguageModel>,
}

impl WordsWork<'_, '_> {
    fn words(&mut self, set: &str, cache: &TokenCache) -> Result<KeptWords, TrainError> {
        let (context, monitor) = (self.context, RefCell::new(&mut *self.monitor));
        let recipe = context.recipe;
        let key = KeptKey::new(cache, &self.hash, recipe, self.settings);
        let what = format!("the teacher's words of {set}");
        let request = KeptRequest {
            dir: &cache_dir(recipe),
            key: &key,
            cache,
            settings: self.settings,
            count: self.count,
            work: KeptWork {
                context: context.step_context(&context.device),
                progress: &|done, total| monitor.borrow_mut().progress(&what, done, total),
            },
        };
        let (held, teacher) = (&mut self.model, self.teacher);
        open_or_compute(&request, &mut || {
            if held.is_none() {
                *held = Some(context.read_teacher(teacher, &mut **monitor.borrow_mut())?);
            }
            Ok(held.clone().expect("it was just put there"))
        })
    }
}
