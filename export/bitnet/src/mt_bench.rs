//! `bitnet mt-bench`: answers to MT-bench's questions in FastChat's files, and a judge's ratings of
//! them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitnet_eval::{
    AskedModel, JudgePrompts, JudgeRequest, MtAnswer, MtQuestion, answer_questions, judged_rating,
};
use bitnet_format::{Shown, StoredModel, model_hash};
use bitnet_terminal::EtaLine;
use bitnet_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

use crate::cli::{HeadArg, MtBenchArgs};
use crate::eval_settings::adapter_hash;
use crate::failure::{BadInput, ServerFailed};
use crate::growing_file::GrowingFile;
use crate::open as opened;
use crate::openai_server::{OpenAiServer, error_message};
use crate::output::{json_line, note, result_line};

/// Questions that are answered together; what is answered is written after each portion.
const PORTION: usize = 16;
/// Tokens of a judgment, as FastChat asks for.
const JUDGMENT_TOKENS: usize = 2048;
/// How often a judge is asked the same, with waits of 1, 2, 4 and 8 seconds between.
const TRIES: u32 = 5;

pub(crate) fn run(args: &MtBenchArgs) -> anyhow::Result<()> {
    let mut questions = MtQuestion::read_all(&args.questions)?;
    questions.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let judge = args.judging.judge.as_deref().map(|url| Judge::new(args, url)).transpose()?;
    if let Some(judge) = &judge {
        // Before hours of answers: a prompt or a reference that is missing is found here.
        questions.iter().try_for_each(|it| judge.check(it))?;
    }
    let name = args.name.clone().unwrap_or_else(|| file_name(args.model.path()));
    let path = args.out.join("model_answer").join(format!("{}.jsonl", plain(&name)));
    let answers = answered(args, &questions, &name, path)?;
    let Some(judge) = judge else {
        let (count, out) = (answers.len(), args.out.shown());
        let line = json!({"model": name, "answers": count, "out": out.to_string()}).to_string();
        let words = format!("{count} answers in {out}");
        return Ok(result_line(if args.json { &line } else { &words })?);
    };
    let file = format!("{}_single.jsonl", plain(&judge.model));
    let judgments = GrowingFile::open(args.out.join("model_judgment").join(file))?;
    let ratings = judge.judged(&questions, &answers, &name, judgments)?;
    show(&name, &ratings, args.json)
}

/// The answers of all questions; those that stand in the file already are kept.
fn answered(
    args: &MtBenchArgs,
    questions: &[MtQuestion],
    name: &str,
    file: PathBuf,
) -> anyhow::Result<Vec<MtAnswer>> {
    let path = args.model.path();
    let model = opened::model(path, args.head, &args.adapter)?;
    let tokenizer = opened::tokenizer(path, &model)?;
    let template = ChatTemplate::of_model(path, &tokenizer)?;
    let made_by = made_by(args, &tokenizer, &template)?;
    // Folders are made only now that there is something to answer with.
    let mut file = GrowingFile::open(file)?;
    let waiting = waiting(questions, &file, &made_by)?;
    let threads = opened::threads(&args.threads, &model)?;
    let (tokenizer, chat) = (&tokenizer, Some(&template));
    let asked = AskedModel { model: &model, tokenizer, chat, threads: &threads };
    let all: usize = waiting.iter().map(|question| question.turns.len()).sum();
    let (mut line, mut before) = (EtaLine::new("answers"), 0);
    for portion in waiting.chunks(PORTION) {
        let answers = answer_questions(asked, portion, args.max_tokens as usize, &mut |done, _| {
            line.show(before + done, all);
            ControlFlow::Continue(())
        });
        let answers = answers?;
        before += answers.iter().map(Vec::len).sum::<usize>();
        for (question, turns) in portion.iter().zip(answers) {
            file.push(answer_row(name, question, &turns, &made_by))?;
        }
    }
    line.finish();
    let answers = MtAnswer::read_all(file.path())?;
    let of =
        |question: &MtQuestion| answers.iter().find(|answer| answer.id == question.id).cloned();
    Ok(questions.iter().filter_map(of).collect())
}

/// The questions without an answer yet.
fn waiting(
    questions: &[MtQuestion],
    file: &GrowingFile,
    made_by: &str,
) -> anyhow::Result<Vec<MtQuestion>> {
    let mut waiting = Vec::new();
    for question in questions {
        match file.rows.iter().find(|row| row["question_id"] == question.id) {
            None => waiting.push(question.clone()),
            Some(row) if row["made_by"] == made_by => {}
            Some(_) => {
                let what = "holds answers of another model or of other settings; choose another \
                            --name or --out";
                return Err(BadInput(format!("{}: {what}", file.path().shown())).into());
            }
        }
    }
    Ok(waiting)
}

/// All that an answer depends on beside its question.
fn made_by(
    args: &MtBenchArgs,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> anyhow::Result<String> {
    let path = args.model.path();
    let parts = json!([
        env!("CARGO_PKG_VERSION"),
        model_hash(path, &StoredModel::open(path)?)?,
        adapter_hash(args.adapter.adapter.as_deref())?,
        blake3::hash(tokenizer.json()).to_hex().to_string(),
        template.identity(),
        args.max_tokens,
        args.head == HeadArg::Int8,
    ]);
    Ok(blake3::hash(parts.to_string().as_bytes()).to_hex().to_string())
}

/// A line of FastChat's `model_answer`, and under `made_by` what it depends on.
fn answer_row(name: &str, question: &MtQuestion, turns: &[String], made_by: &str) -> Value {
    let identity = json!([made_by, question.id, turns]).to_string();
    let id = blake3::hash(identity.as_bytes()).to_hex().to_string();
    // As long as the short ids of FastChat.
    json!({"question_id": question.id, "answer_id": &id[..22], "model_id": name,
        "choices": [{"index": 0, "turns": turns}], "tstamp": seconds(), "made_by": made_by})
}

/// A model that rates answers.
struct Judge {
    server: OpenAiServer,
    model: String,
    prompts: JudgePrompts,
    references: Vec<MtAnswer>,
}

/// A turn, from 1, and how it was rated.
type Rating = (usize, Option<f64>);

impl Judge {
    fn new(args: &MtBenchArgs, url: &str) -> anyhow::Result<Self> {
        let args = &args.judging;
        let prompts = args.judge_prompts.as_deref().expect("clap requires it");
        let references = args.references.as_deref().map(MtAnswer::read_all).transpose()?;
        Ok(Self {
            server: OpenAiServer::new("--judge", url, args.judge_key_file.as_deref())?,
            model: args.judge_model.clone().expect("clap requires it"),
            prompts: JudgePrompts::read(prompts)?,
            references: references.unwrap_or_default(),
        })
    }

    fn reference(&self, question: &MtQuestion) -> Option<&[String]> {
        let found = self.references.iter().find(|answer| answer.id == question.id);
        found.map(|answer| answer.turns.as_slice())
    }

    /// Whether a question can be judged, whatever its answers will be.
    fn check(&self, question: &MtQuestion) -> anyhow::Result<()> {
        let answers = vec![String::new(); question.turns.len()];
        for turn in judged_turns(question) {
            self.prompts.request(question, &answers, self.reference(question), turn)?;
        }
        Ok(())
    }

    /// The ratings of all answers; a judgment of the very same prompt is not asked for again.
    fn judged(
        &self,
        questions: &[MtQuestion],
        answers: &[MtAnswer],
        name: &str,
        mut file: GrowingFile,
    ) -> anyhow::Result<Vec<Rating>> {
        let mut line = EtaLine::new("judgments");
        let all: usize = questions.iter().map(|question| judged_turns(question).count()).sum();
        let mut ratings = Vec::new();
        for (question, answer) in questions.iter().zip(answers) {
            for turn in judged_turns(question) {
                let reference = self.reference(question);
                let asked = self.prompts.request(question, &answer.turns, reference, turn)?;
                let is_same = |row: &&Value| {
                    row["question_id"] == question.id
                        && row["model"] == name
                        && row["judge"] == json!([self.model, asked.prompt])
                        && row["user_prompt"] == asked.user
                };
                let kept = file.rows.iter().rev().find(is_same).cloned();
                let row = if let Some(row) = kept {
                    row
                } else {
                    let row = self.row(question, name, turn, &asked)?;
                    file.push(row.clone())?;
                    row
                };
                ratings.push((turn, row["score"].as_f64().filter(|score| *score >= 0.0)));
                line.show(ratings.len(), all);
            }
        }
        line.finish();
        Ok(ratings)
    }

    /// A line of FastChat's `model_judgment`.
    fn row(
        &self,
        question: &MtQuestion,
        name: &str,
        turn: usize,
        asked: &JudgeRequest,
    ) -> anyhow::Result<Value> {
        let judgment = self.ask(asked)?;
        // -1 is FastChat's score where a judge gave none; its table leaves these out.
        let score = judged_rating(&judgment).map_or(json!(-1), Value::from);
        Ok(json!({"question_id": question.id, "model": name, "judge": [self.model, asked.prompt],
            "user_prompt": asked.user, "judgment": judgment, "score": score, "turn": turn,
            "tstamp": seconds()}))
    }

    fn ask(&self, asked: &JudgeRequest) -> Result<String, ServerFailed> {
        let mut tries = 1;
        loop {
            match self.ask_once(asked) {
                Err(error) if tries < TRIES => {
                    note(&format!("{error}; asked again"));
                    sleep(Duration::from_secs(1 << (tries - 1)));
                    tries += 1;
                }
                found => return found,
            }
        }
    }

    fn ask_once(&self, asked: &JudgeRequest) -> Result<String, ServerFailed> {
        let messages = json!([{"role": "system", "content": asked.system},
            {"role": "user", "content": asked.user}]);
        let body = json!({"model": self.model, "messages": messages, "n": 1, "temperature": 0,
            "max_tokens": JUDGMENT_TOKENS});
        let answer = self.server.post("/v1/chat/completions", &body)?;
        let answer = self.server.whole(answer)?;
        let answer = answer.map_err(|error| self.server.failed(&error_message(&error)))?;
        let text = answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
        text.ok_or_else(|| self.server.failed(&"answers without choices[0].message.content"))
    }
}

/// The first turn by itself, and the second with the first before it. FastChat judges the second
/// turn of questions with two turns.
fn judged_turns(question: &MtQuestion) -> impl Iterator<Item = usize> + use<> {
    1..=if question.turns.len() == 2 { 2 } else { 1 }
}

/// FastChat's three means: of the first turns, of the second, and of all together.
fn show(name: &str, ratings: &[Rating], as_json: bool) -> anyhow::Result<()> {
    let mean = |turns: &[usize]| {
        let own = ratings.iter().filter(|(turn, _)| turns.contains(turn));
        let own: Vec<f64> = own.filter_map(|(_, rating)| *rating).collect();
        (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
    };
    let means = [mean(&[1]), mean(&[2]), mean(&[1, 2])];
    let unrated = ratings.iter().filter(|(_, rating)| rating.is_none()).count();
    if as_json {
        return Ok(json_line(&json!({"model": name, "turn_1": means[0], "turn_2": means[1],
            "mean": means[2], "judgments": ratings.len(), "unrated": unrated}))?);
    }
    let cell = |mean: Option<f64>| mean.map_or("–".to_owned(), |mean| format!("{mean:.2}"));
    let width = name.chars().count().max(5);
    result_line(&format!("{:<width$}  {:>6}  {:>6}  {:>6}", "model", "turn 1", "turn 2", "mean"))?;
    let [first, second, both] = means.map(cell);
    result_line(&format!("{name:<width$}  {first:>6}  {second:>6}  {both:>6}"))?;
    if unrated > 0 {
        note(&format!("{unrated} of {} judgments hold no rating and are left out", ratings.len()));
    }
    Ok(())
}

/// The name of a model's folder, or that of its file without the ending.
fn file_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A name as that of a file.
fn plain(name: &str) -> String {
    name.replace(['/', '\\'], "_")
}

/// Seconds since 1970, as FastChat's files have them.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
