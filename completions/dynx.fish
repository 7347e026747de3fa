# fish completion for dynx. Made from the command tree by: python -m dynx.cli.reference

# The command being typed, with its parents: fish's own helpers would take a word of the prompt for one.
function __dynx_command
    set -l path
    set -l is_value no
    for word in (commandline -opc)
        if test $is_value = yes
            set is_value no
            continue
        end
        switch "$path"
            case ''
                set path dynx
            case 'dynx'
                switch $word
                    case 'generate' 'classify' 'draw' 'calibrate' 'bench'
                        set path "$path $word"
                end
        end
    end
    echo $path
end

function __dynx_at
    test (__dynx_command) = "$argv"
end

# The value being typed, without the option that it may hang on.
function __dynx_value
    commandline -ct | string replace -r '^--[^=]*=' ''
end

function __dynx_folders
    __fish_complete_directories (__dynx_value)
end

function __dynx_files_after
    set -l value (__dynx_value)
    for prefix in $argv
        if string match -q -- "$prefix*" $value
            printf '%s\n' $prefix(complete -C"'' "(string replace -- $prefix '' $value) | string replace -r '\t.*' '')
            return
        end
    end
    printf '%s\n' $argv
end

# Models of a task in the hub's cache, told by what their config.json says they are; what draws has a model_index.json.
function __dynx_hub
    set -l folder $HOME/.cache/huggingface/hub
    if test -n "$HF_HUB_CACHE"
        set folder $HF_HUB_CACHE
    else if test -n "$HF_HOME"
        set folder $HF_HOME/hub
    else if test -n "$XDG_CACHE_HOME"
        set folder $XDG_CACHE_HOME/huggingface/hub
    end
    set -l fits
    switch $argv[1]
        case generate
            set fits '(ForCausalLM|LMHeadModel)"'
        case classify
            set fits '(ForSequenceClassification|ForImageClassification)"'
        case any
            set fits '(ForCausalLM|LMHeadModel|ForSequenceClassification|ForImageClassification)"'
    end
    set -l files
    if set -q fits[1]
        set files $folder/models--*/snapshots/*/config.json
        if set -q files[1]
            set files (grep -lE -- $fits $files 2>/dev/null)
        end
    end
    if contains -- $argv[1] draw any
        set -a files $folder/models--*/snapshots/*/model_index.json
    end
    for file in $files
        string replace -r '^.*/models--([^/]*)/snapshots/[^/]*/[^/]*$' '$1' -- $file | string replace -- -- /
    end
end

function __dynx_profiles
    set -l folder $HOME/.cache/dynx
    if test -n "$DYNX_CACHE_DIR"
        set folder $DYNX_CACHE_DIR
    else if test -n "$XDG_CACHE_HOME"
        set folder $XDG_CACHE_HOME/dynx
    else if test (uname) = Darwin
        set folder $HOME/Library/Caches/dynx
    end
    for file in $folder/profiles/*-*.json
        set -l found (string match -r '([^/]*)-([0-9a-f]{12})\.json$' -- $file)
        and string match -qr -- "^("(string replace any '.*' -- $argv[1])")-" $found[2]
        and printf '%s\t%s\n' $found[3] $found[2]
    end
end

complete -c dynx -f

# dynx
complete -c dynx -n '__dynx_at dynx' -a 'generate' -d 'Continue a text with a language model, by speculative decoding with the text of plain decoding'
complete -c dynx -n '__dynx_at dynx' -a 'classify' -d 'Label texts, their entities or images with early exit, and bound how many answers differ from the full model\'s'
complete -c dynx -n '__dynx_at dynx' -a 'draw' -d 'Draw pictures from prompts in as few diffusion steps as each needs, within a bound on the change'
complete -c dynx -n '__dynx_at dynx' -a 'calibrate' -d 'Measure a model on this device once and store a profile'
complete -c dynx -n '__dynx_at dynx' -a 'bench' -d 'Compare plain, static and dynamic execution in one interleaved run, with gates'
complete -c dynx -n '__dynx_at dynx' -l version -d 'Print the version and exit'
complete -c dynx -n '__dynx_at dynx' -s h -l help -d 'Show this message and exit'

# dynx generate
complete -c dynx -n '__dynx_at dynx generate' -s m -l model -x -a 'story (__dynx_hub generate) (__dynx_folders)' -d 'A shipped model\'s name, a GGUF file, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx generate' -l adapter -x -d 'Fold a LoRA adapter, a folder or hub id, into the language model\'s weights'
complete -c dynx -n '__dynx_at dynx generate' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'Draft source'
complete -c dynx -n '__dynx_at dynx generate' -l lookup -r -F -d 'Prompt lookup also drafts from this text file'
complete -c dynx -n '__dynx_at dynx generate' -s n -l max-new-tokens -x -d 'Stop after this many tokens'
complete -c dynx -n '__dynx_at dynx generate' -l temperature -x -d 'Sampling temperature'
complete -c dynx -n '__dynx_at dynx generate' -l top-k -x -d 'Sample from the K most likely tokens'
complete -c dynx -n '__dynx_at dynx generate' -l top-p -x -d 'Sample from the most likely tokens whose probabilities sum to P'
complete -c dynx -n '__dynx_at dynx generate' -l repetition-penalty -x -d 'Repetition penalty, above 1 for less repetition'
complete -c dynx -n '__dynx_at dynx generate' -l seed -x -d 'Random seed'
complete -c dynx -n '__dynx_at dynx generate' -l stop -x -d 'Stop before this text'
complete -c dynx -n '__dynx_at dynx generate' -l chat -d 'Apply the model\'s chat template to each prompt'
complete -c dynx -n '__dynx_at dynx generate' -l system -x -d 'System message of conversations that have none'
complete -c dynx -n '__dynx_at dynx generate' -l messages -r -F -d 'Answer a conversation: a JSON list of messages with role and content'
complete -c dynx -n '__dynx_at dynx generate' -l lines -d 'One prompt per line of stdin, one answer per line of stdout'
complete -c dynx -n '__dynx_at dynx generate' -l field -x -d 'With --lines: read JSON lines'
complete -c dynx -n '__dynx_at dynx generate' -l batch -x -d 'With --lines or --input: the largest number of prompts per batch'
complete -c dynx -n '__dynx_at dynx generate' -l column -x -d 'With --input: the column, or the key of JSON lines, that holds the prompts'
complete -c dynx -n '__dynx_at dynx generate' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx generate' -l jsonl -d 'Print JSON lines: one per token and result'
complete -c dynx -n '__dynx_at dynx generate' -l stats -d 'Print the cost and the saving on stderr'
complete -c dynx -n '__dynx_at dynx generate' -l explain -d 'Colour each token by its draft source, and show the reason for each setting'
complete -c dynx -n '__dynx_at dynx generate' -l plain -d 'Plain decoding, without speculation'
complete -c dynx -n '__dynx_at dynx generate' -l verify -d 'Score the answer with plain decoding'
complete -c dynx -n '__dynx_at dynx generate' -l exact -d 'Guarantee the text of --plain --exact also in bfloat16 or int8, where rounding can decide near ties'
complete -c dynx -n '__dynx_at dynx generate' -l dry-run -d 'Print what would be done and why, without loading the model, and exit'
complete -c dynx -n '__dynx_at dynx generate' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Execution backend'
complete -c dynx -n '__dynx_at dynx generate' -l quantize -x -a 'auto none int8 int4 file' -d 'Quantize weights to 8 or 4 bits, or run a GGUF file\'s weights in the file\'s own bits (file'
complete -c dynx -n '__dynx_at dynx generate' -l profile -x -a 'none (__dynx_profiles generate)' -d 'Use this stored profile, or none'
complete -c dynx -n '__dynx_at dynx generate' -l require-profile -d 'Exit with 4 unless a stored profile fits'
complete -c dynx -n '__dynx_at dynx generate' -l input -x -d 'Run a job over all rows of these files'
complete -c dynx -n '__dynx_at dynx generate' -l output -x -a '(__dynx_folders)' -d 'With --input'
complete -c dynx -n '__dynx_at dynx generate' -l engine -x -a 'local ray' -d 'With --input'
complete -c dynx -n '__dynx_at dynx generate' -l workers -x -d 'With --input: number of workers'
complete -c dynx -n '__dynx_at dynx generate' -l shard-rows -x -d 'With --input: rows that a worker answers and writes at a time'
complete -c dynx -n '__dynx_at dynx generate' -l timeout-row -x -d 'With --input: give up a row that takes longer'
complete -c dynx -n '__dynx_at dynx generate' -l device -x -a 'auto cpu cuda xpu mps' -d 'Device: auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx generate' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Compute precision'
complete -c dynx -n '__dynx_at dynx generate' -l threads -x -d 'CPU threads'
complete -c dynx -n '__dynx_at dynx generate' -l allow-pickle -d 'Also load pickled weights'
complete -c dynx -n '__dynx_at dynx generate' -l trust-remote-code -d 'Run Python code from the model\'s folder'
complete -c dynx -n '__dynx_at dynx generate' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx generate' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx generate' -s q -l quiet -d 'Suppress notices on stderr'
complete -c dynx -n '__dynx_at dynx generate' -s v -l verbose -d 'Print decisions and their reasons on stderr'
complete -c dynx -n '__dynx_at dynx generate' -l color -x -a 'auto always never' -d 'When to use colour'
complete -c dynx -n '__dynx_at dynx generate' -s h -l help -d 'Show this message and exit'

# dynx classify
complete -c dynx -n '__dynx_at dynx classify' -F
complete -c dynx -n '__dynx_at dynx classify' -s m -l model -x -a 'mood (__dynx_hub classify) (__dynx_folders)' -d 'A shipped model\'s name, a GGUF file, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx classify' -s 0 -l null -d 'Inputs on stdin end with NUL instead of a newline'
complete -c dynx -n '__dynx_at dynx classify' -l tsv -d 'Read a tab-separated table, quoted as Python\'s csv module does'
complete -c dynx -n '__dynx_at dynx classify' -l column -x -d 'With --tsv: the column that holds the texts, by header or number from 1'
complete -c dynx -n '__dynx_at dynx classify' -l field -x -d 'Read JSON lines'
complete -c dynx -n '__dynx_at dynx classify' -l pair -x -d 'The inputs are pairs of texts'
complete -c dynx -n '__dynx_at dynx classify' -l rank -d 'Rank the documents of each query by a cross-encoder'
complete -c dynx -n '__dynx_at dynx classify' -l group -x -d 'With --pair'
complete -c dynx -n '__dynx_at dynx classify' -l candidates -x -d 'Choose among these labels, separated by commas, with a model for natural language inference (zero-shot)'
complete -c dynx -n '__dynx_at dynx classify' -l hypothesis -x -d 'With --candidates: the sentence that a label makes, with {} for the label'
complete -c dynx -n '__dynx_at dynx classify' -l multi-label -d 'With --candidates: several labels of a text may hold'
complete -c dynx -n '__dynx_at dynx classify' -l aggregation-strategy -x -d 'Models that label tokens'
complete -c dynx -n '__dynx_at dynx classify' -l per-class -d 'Bound the share of changed answers for each of the full model\'s labels, not only for all inputs'
complete -c dynx -n '__dynx_at dynx classify' -l skip-empty -d 'Skip empty texts'
complete -c dynx -n '__dynx_at dynx classify' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx classify' -l max-disagreement -x -d 'Largest share of answers that may differ from the full model\'s'
complete -c dynx -n '__dynx_at dynx classify' -l confidence -x -d 'Confidence level of the bound'
complete -c dynx -n '__dynx_at dynx classify' -l within -x -d 'Regression models: outputs that differ by at most T count as equal'
complete -c dynx -n '__dynx_at dynx classify' -l certify -d 'Certify the exit rule on a random sample of this input'
complete -c dynx -n '__dynx_at dynx classify' -l audit -x -d 'Check this share of the answers with the full model'
complete -c dynx -n '__dynx_at dynx classify' -l batch-size -x -d 'Inputs per batch'
complete -c dynx -n '__dynx_at dynx classify' -l max-length -x -d 'Truncate texts to N tokens'
complete -c dynx -n '__dynx_at dynx classify' -l top-k -x -d 'The K best labels of each input'
complete -c dynx -n '__dynx_at dynx classify' -l scores -d 'Print the scores of all labels'
complete -c dynx -n '__dynx_at dynx classify' -l labels -r -F -d 'File of true labels, one per input or in the last column'
complete -c dynx -n '__dynx_at dynx classify' -l resume -r -F -d 'Write to this file, continuing after its last complete result'
complete -c dynx -n '__dynx_at dynx classify' -l jsonl -d 'Print one JSON line per input'
complete -c dynx -n '__dynx_at dynx classify' -l stats -d 'Print the cost and the saving on stderr'
complete -c dynx -n '__dynx_at dynx classify' -l explain -d 'Show exit layers, inputs that ran all layers, and the reason for each setting'
complete -c dynx -n '__dynx_at dynx classify' -l plain -d 'Run the full model on every input, without early exit'
complete -c dynx -n '__dynx_at dynx classify' -l verify -d 'Also run the full model on every input'
complete -c dynx -n '__dynx_at dynx classify' -l dry-run -d 'Print what would be done and why, without loading the model, and exit'
complete -c dynx -n '__dynx_at dynx classify' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Execution backend'
complete -c dynx -n '__dynx_at dynx classify' -l quantize -x -a 'auto none int8 int4 file' -d 'Quantize weights to 8 or 4 bits, or run a GGUF file\'s weights in the file\'s own bits (file'
complete -c dynx -n '__dynx_at dynx classify' -l profile -x -a 'none (__dynx_profiles classify)' -d 'Use this stored profile, or none'
complete -c dynx -n '__dynx_at dynx classify' -l require-profile -d 'Exit with 4 unless a stored profile fits'
complete -c dynx -n '__dynx_at dynx classify' -l input -x -d 'Run a job over all rows of these files'
complete -c dynx -n '__dynx_at dynx classify' -l output -x -a '(__dynx_folders)' -d 'With --input'
complete -c dynx -n '__dynx_at dynx classify' -l engine -x -a 'local ray' -d 'With --input'
complete -c dynx -n '__dynx_at dynx classify' -l workers -x -d 'With --input: number of workers'
complete -c dynx -n '__dynx_at dynx classify' -l shard-rows -x -d 'With --input: rows that a worker answers and writes at a time'
complete -c dynx -n '__dynx_at dynx classify' -l timeout-row -x -d 'With --input: give up a row that takes longer'
complete -c dynx -n '__dynx_at dynx classify' -l device -x -a 'auto cpu cuda xpu mps' -d 'Device: auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx classify' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Compute precision'
complete -c dynx -n '__dynx_at dynx classify' -l threads -x -d 'CPU threads'
complete -c dynx -n '__dynx_at dynx classify' -l allow-pickle -d 'Also load pickled weights'
complete -c dynx -n '__dynx_at dynx classify' -l trust-remote-code -d 'Run Python code from the model\'s folder'
complete -c dynx -n '__dynx_at dynx classify' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx classify' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx classify' -s q -l quiet -d 'Suppress notices on stderr'
complete -c dynx -n '__dynx_at dynx classify' -s v -l verbose -d 'Print decisions and their reasons on stderr'
complete -c dynx -n '__dynx_at dynx classify' -l color -x -a 'auto always never' -d 'When to use colour'
complete -c dynx -n '__dynx_at dynx classify' -s h -l help -d 'Show this message and exit'

# dynx draw
complete -c dynx -n '__dynx_at dynx draw' -s o -l output -r -F -d 'A file, a folder, or a pattern with {n}, {slug} (the prompt) and {seed}; {slug}.png by default, {n}-{slug}.png for several pictures. - writes the PNG to stdout'
complete -c dynx -n '__dynx_at dynx draw' -s m -l model -x -a 'emoji (__dynx_hub draw) (__dynx_folders)' -d 'A shipped model\'s name, a GGUF file, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx draw' -l lora -x -d 'Fold a LoRA adapter, a safetensors file, into the pipeline\'s weights'
complete -c dynx -n '__dynx_at dynx draw' -l image -r -F -d 'Start from this picture (image-to-image) instead of noise alone'
complete -c dynx -n '__dynx_at dynx draw' -l strength -x -d 'How much may change of the picture that --image gives, above 0 and at most 1'
complete -c dynx -n '__dynx_at dynx draw' -l mask -r -F -d 'Change only what is white in this picture (inpainting)'
complete -c dynx -n '__dynx_at dynx draw' -l control-image -r -F -d 'Pipelines with a ControlNet'
complete -c dynx -n '__dynx_at dynx draw' -l control-scale -x -d 'How much the picture of --control-image counts, above 0'
complete -c dynx -n '__dynx_at dynx draw' -s c -l count -x -d 'Pictures per prompt, with consecutive seeds'
complete -c dynx -n '__dynx_at dynx draw' -l seed -x -d 'Random seed'
complete -c dynx -n '__dynx_at dynx draw' -l size -x -d 'Width and height in pixels, or one number for both'
complete -c dynx -n '__dynx_at dynx draw' -l guidance -x -d 'Guidance scale'
complete -c dynx -n '__dynx_at dynx draw' -l negative -x -d 'Negative prompt'
complete -c dynx -n '__dynx_at dynx draw' -l quality -x -d 'Target SSIM to the full run of the same seed, from 0 to 1'
complete -c dynx -n '__dynx_at dynx draw' -l steps -x -a 'auto' -d 'Number of steps'
complete -c dynx -n '__dynx_at dynx draw' -l draft -d 'Draw a cheap preview in few steps'
complete -c dynx -n '__dynx_at dynx draw' -l finish -r -F -d 'Draw a draft\'s PNG again in full quality'
complete -c dynx -n '__dynx_at dynx draw' -l info -r -F -d 'Print how a PNG was drawn, and exit'
complete -c dynx -n '__dynx_at dynx draw' -l column -x -d 'With --input: the column, or the key of JSON lines, that holds the prompts'
complete -c dynx -n '__dynx_at dynx draw' -l lines -d 'One prompt per line of stdin, or a JSON object with prompt, and size and seed if they differ'
complete -c dynx -n '__dynx_at dynx draw' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx draw' -l show -x -a 'auto always never' -d 'Show the picture in the terminal'
complete -c dynx -n '__dynx_at dynx draw' -l preview -d 'Show intermediate images in the terminal'
complete -c dynx -n '__dynx_at dynx draw' -l jsonl -d 'Print JSON lines: one per step and picture'
complete -c dynx -n '__dynx_at dynx draw' -l stats -d 'Print the cost and the saving on stderr'
complete -c dynx -n '__dynx_at dynx draw' -l explain -d 'Show run and skipped steps, and the reason for each setting'
complete -c dynx -n '__dynx_at dynx draw' -l plain -d 'Run the unmodified pipeline'
complete -c dynx -n '__dynx_at dynx draw' -l force -d 'Overwrite existing files'
complete -c dynx -n '__dynx_at dynx draw' -l verify -d 'Also draw each picture with the unmodified pipeline and print the SSIM'
complete -c dynx -n '__dynx_at dynx draw' -l dry-run -d 'Print what would be done and why, without loading the model, and exit'
complete -c dynx -n '__dynx_at dynx draw' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Execution backend'
complete -c dynx -n '__dynx_at dynx draw' -l profile -x -a 'none (__dynx_profiles draw)' -d 'Use this stored profile, or none'
complete -c dynx -n '__dynx_at dynx draw' -l require-profile -d 'Exit with 4 unless a stored profile fits'
complete -c dynx -n '__dynx_at dynx draw' -l input -x -d 'Run a job over all rows of these files'
complete -c dynx -n '__dynx_at dynx draw' -l engine -x -a 'local ray' -d 'With --input'
complete -c dynx -n '__dynx_at dynx draw' -l workers -x -d 'With --input: number of workers'
complete -c dynx -n '__dynx_at dynx draw' -l shard-rows -x -d 'With --input: rows that a worker answers and writes at a time'
complete -c dynx -n '__dynx_at dynx draw' -l timeout-row -x -d 'With --input: give up a row that takes longer'
complete -c dynx -n '__dynx_at dynx draw' -l device -x -a 'auto cpu cuda xpu mps' -d 'Device: auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx draw' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Compute precision'
complete -c dynx -n '__dynx_at dynx draw' -l threads -x -d 'CPU threads'
complete -c dynx -n '__dynx_at dynx draw' -l allow-pickle -d 'Also load pickled weights'
complete -c dynx -n '__dynx_at dynx draw' -l trust-remote-code -d 'Run Python code from the model\'s folder'
complete -c dynx -n '__dynx_at dynx draw' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx draw' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx draw' -s q -l quiet -d 'Suppress notices on stderr'
complete -c dynx -n '__dynx_at dynx draw' -s v -l verbose -d 'Print decisions and their reasons on stderr'
complete -c dynx -n '__dynx_at dynx draw' -l color -x -a 'auto always never' -d 'When to use colour'
complete -c dynx -n '__dynx_at dynx draw' -s h -l help -d 'Show this message and exit'

# dynx calibrate
complete -c dynx -n '__dynx_at dynx calibrate' -s m -l model -x -a 'story emoji mood (__dynx_hub any) (__dynx_folders)' -d 'A shipped model\'s name, a GGUF file, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx calibrate' -l adapter -x -d 'Fold a LoRA adapter, a folder or hub id, into the language model\'s weights'
complete -c dynx -n '__dynx_at dynx calibrate' -l lora -x -d 'Fold a LoRA adapter, a safetensors file, into the pipeline\'s weights'
complete -c dynx -n '__dynx_at dynx calibrate' -l image -r -F -d 'Pipelines'
complete -c dynx -n '__dynx_at dynx calibrate' -l strength -x -d 'How much may change of the picture that --image gives, above 0 and at most 1'
complete -c dynx -n '__dynx_at dynx calibrate' -l mask -r -F -d 'Pipelines: measure inpainting with a mask like this one'
complete -c dynx -n '__dynx_at dynx calibrate' -l control-image -r -F -d 'Pipelines with a ControlNet'
complete -c dynx -n '__dynx_at dynx calibrate' -l control-scale -x -d 'How much the picture of --control-image counts, above 0'
complete -c dynx -n '__dynx_at dynx calibrate' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'Draft source'
complete -c dynx -n '__dynx_at dynx calibrate' -l data -r -F -d 'Calibration data: prompts, one per line or as JSON lines (generated by default)'
complete -c dynx -n '__dynx_at dynx calibrate' -l tsv -d 'Read a tab-separated table, quoted as Python\'s csv module does'
complete -c dynx -n '__dynx_at dynx calibrate' -l column -x -d 'With --tsv: the column that holds the texts, by header or number from 1'
complete -c dynx -n '__dynx_at dynx calibrate' -l field -x -d 'Read JSON lines'
complete -c dynx -n '__dynx_at dynx calibrate' -l pair -x -d 'The inputs are pairs of texts'
complete -c dynx -n '__dynx_at dynx calibrate' -l rank -d 'Rank the documents of each query by a cross-encoder'
complete -c dynx -n '__dynx_at dynx calibrate' -l group -x -d 'With --pair'
complete -c dynx -n '__dynx_at dynx calibrate' -l candidates -x -d 'Choose among these labels, separated by commas, with a model for natural language inference (zero-shot)'
complete -c dynx -n '__dynx_at dynx calibrate' -l hypothesis -x -d 'With --candidates: the sentence that a label makes, with {} for the label'
complete -c dynx -n '__dynx_at dynx calibrate' -l multi-label -d 'With --candidates: several labels of a text may hold'
complete -c dynx -n '__dynx_at dynx calibrate' -l aggregation-strategy -x -d 'Models that label tokens'
complete -c dynx -n '__dynx_at dynx calibrate' -l per-class -d 'Bound the share of changed answers for each of the full model\'s labels, not only for all inputs'
complete -c dynx -n '__dynx_at dynx calibrate' -l top-k -x -d 'The K best labels of each input'
complete -c dynx -n '__dynx_at dynx calibrate' -l chat -d 'Apply the model\'s chat template to each prompt'
complete -c dynx -n '__dynx_at dynx calibrate' -l system -x -d 'System message of conversations that have none'
complete -c dynx -n '__dynx_at dynx calibrate' -l max-disagreement -x -d 'Largest share of answers that may differ from the full model\'s'
complete -c dynx -n '__dynx_at dynx calibrate' -l confidence -x -d 'Confidence level of the bound'
complete -c dynx -n '__dynx_at dynx calibrate' -l within -x -d 'Regression models: outputs that differ by at most T count as equal'
complete -c dynx -n '__dynx_at dynx calibrate' -l batch-size -x -d 'Inputs per batch'
complete -c dynx -n '__dynx_at dynx calibrate' -l max-length -x -d 'Truncate texts to N tokens'
complete -c dynx -n '__dynx_at dynx calibrate' -l quality -x -d 'Target SSIM to the full run of the same seed, from 0 to 1'
complete -c dynx -n '__dynx_at dynx calibrate' -l guidance -x -d 'Guidance scale'
complete -c dynx -n '__dynx_at dynx calibrate' -l negative -x -d 'Pipelines: the negative prompt that will be used'
complete -c dynx -n '__dynx_at dynx calibrate' -l size -x -d 'Width and height in pixels, or one number for both'
complete -c dynx -n '__dynx_at dynx calibrate' -l budget -x -d 'Time for measuring once all is loaded'
complete -c dynx -n '__dynx_at dynx calibrate' -l learn-drafter -d 'Language models'
complete -c dynx -n '__dynx_at dynx calibrate' -l anew -d 'Pipelines'
complete -c dynx -n '__dynx_at dynx calibrate' -l dry-run -d 'Print what would be measured, and exit'
complete -c dynx -n '__dynx_at dynx calibrate' -l check -d 'Test the stored profile\'s promise on fresh inputs'
complete -c dynx -n '__dynx_at dynx calibrate' -l device-info -d 'Show this machine\'s hardware and what dynx chooses on it'
complete -c dynx -n '__dynx_at dynx calibrate' -l list -d 'List the stored profiles'
complete -c dynx -n '__dynx_at dynx calibrate' -l show -x -a '(__dynx_profiles any)' -d 'Print a stored profile'
complete -c dynx -n '__dynx_at dynx calibrate' -l export -x -a '(__dynx_folders) (__dynx_profiles any)' -d 'Write a stored profile as one file, to --output or stdout'
complete -c dynx -n '__dynx_at dynx calibrate' -s o -l output -r -F -d 'The file that --export writes'
complete -c dynx -n '__dynx_at dynx calibrate' -l import -r -F -d 'Import an exported profile'
complete -c dynx -n '__dynx_at dynx calibrate' -l remove -x -a '(__dynx_profiles any)' -d 'Delete a stored profile'
complete -c dynx -n '__dynx_at dynx calibrate' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Execution backend'
complete -c dynx -n '__dynx_at dynx calibrate' -l quantize -x -a 'auto none int8 int4 file' -d 'Quantize weights to 8 or 4 bits, or run a GGUF file\'s weights in the file\'s own bits (file'
complete -c dynx -n '__dynx_at dynx calibrate' -l device -x -a 'auto cpu cuda xpu mps' -d 'Device: auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx calibrate' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Compute precision'
complete -c dynx -n '__dynx_at dynx calibrate' -l threads -x -d 'CPU threads'
complete -c dynx -n '__dynx_at dynx calibrate' -l allow-pickle -d 'Also load pickled weights'
complete -c dynx -n '__dynx_at dynx calibrate' -l trust-remote-code -d 'Run Python code from the model\'s folder'
complete -c dynx -n '__dynx_at dynx calibrate' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx calibrate' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx calibrate' -s q -l quiet -d 'Suppress notices on stderr'
complete -c dynx -n '__dynx_at dynx calibrate' -s v -l verbose -d 'Print decisions and their reasons on stderr'
complete -c dynx -n '__dynx_at dynx calibrate' -l color -x -a 'auto always never' -d 'When to use colour'
complete -c dynx -n '__dynx_at dynx calibrate' -s h -l help -d 'Show this message and exit'

# dynx bench
complete -c dynx -n '__dynx_at dynx bench' -a 'generate classify draw all'
complete -c dynx -n '__dynx_at dynx bench' -s m -l model -x -a 'emoji mood story (__dynx_hub any) (__dynx_folders)' -d 'A shipped model\'s name, a GGUF file, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx bench' -l data -r -F -d 'Inputs'
complete -c dynx -n '__dynx_at dynx bench' -l field -x -d 'Read JSON lines'
complete -c dynx -n '__dynx_at dynx bench' -l chat -d 'Apply the model\'s chat template to each prompt'
complete -c dynx -n '__dynx_at dynx bench' -l system -x -d 'System message of conversations that have none'
complete -c dynx -n '__dynx_at dynx bench' -l by -x -d 'Report each category of prompts, by this key of JSON lines (or dotted path), or none'
complete -c dynx -n '__dynx_at dynx bench' -l runs -x -d 'Rounds'
complete -c dynx -n '__dynx_at dynx bench' -l prompts -l inputs -x -d 'Largest number of inputs'
complete -c dynx -n '__dynx_at dynx bench' -l adapter -x -d 'Fold a LoRA adapter, a folder or hub id, into the language model\'s weights'
complete -c dynx -n '__dynx_at dynx bench' -l lora -x -d 'Fold a LoRA adapter, a safetensors file, into the pipeline\'s weights'
complete -c dynx -n '__dynx_at dynx bench' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'Draft source, as in dynx generate'
complete -c dynx -n '__dynx_at dynx bench' -s n -l max-new-tokens -x -d 'Tokens per answer'
complete -c dynx -n '__dynx_at dynx bench' -l static -x -a 'none' -d 'Static draft lengths to measure, such as 2,4'
complete -c dynx -n '__dynx_at dynx bench' -l labels -r -F -d 'Classifiers'
complete -c dynx -n '__dynx_at dynx bench' -l with -x -d 'Options of the model\'s own command for every arm, in one argument'
complete -c dynx -n '__dynx_at dynx bench' -l arm -x -d 'Add an arm with other options (-m, --dtype, --profile, --static K, …), of static prompt lookup (NAME=lookup:K with K draft tokens, lookup:K:N after a match of at least N), or run by transformers'
complete -c dynx -n '__dynx_at dynx bench' -l min-speedup -x -d 'Gate: dynamic is at least X times as fast as plain'
complete -c dynx -n '__dynx_at dynx bench' -l each-category -d 'Apply --min-speedup to every category of prompts too'
complete -c dynx -n '__dynx_at dynx bench' -l require-identical -d 'Gate: every output of dynamic equals plain\'s: the same tokens, labels or pixels'
complete -c dynx -n '__dynx_at dynx bench' -l max-disagreement -x -d 'Gate for classifiers'
complete -c dynx -n '__dynx_at dynx bench' -l min-quality -x -d 'Gate for pipelines'
complete -c dynx -n '__dynx_at dynx bench' -l baseline -r -F -d 'Gate: dynamic\'s speed relative to plain is that of this earlier JSON result'
complete -c dynx -n '__dynx_at dynx bench' -l tolerance -x -d 'Slowdown that still passes'
complete -c dynx -n '__dynx_at dynx bench' -l bisect -d 'Exit with 125 without a verdict, for git bisect run'
complete -c dynx -n '__dynx_at dynx bench' -l budget -x -d 'Time limit, checked after each round, and within a round if a gate is undecided'
complete -c dynx -n '__dynx_at dynx bench' -l export -x -a '(__dynx_files_after json: md: csv: junit: github-action-benchmark:)' -d 'Write the result as json, md, csv, junit or github-action-benchmark'
complete -c dynx -n '__dynx_at dynx bench' -l plot -r -F -d 'Plot speed, and speed against quality, as SVG or PNG'
complete -c dynx -n '__dynx_at dynx bench' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Execution backend'
complete -c dynx -n '__dynx_at dynx bench' -l quantize -x -a 'auto none int8 int4 file' -d 'Quantize weights to 8 or 4 bits, or run a GGUF file\'s weights in the file\'s own bits (file'
complete -c dynx -n '__dynx_at dynx bench' -l device -x -a 'auto cpu cuda xpu mps' -d 'Device: auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx bench' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Compute precision'
complete -c dynx -n '__dynx_at dynx bench' -l threads -x -d 'CPU threads'
complete -c dynx -n '__dynx_at dynx bench' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx bench' -s q -l quiet -d 'Suppress notices on stderr'
complete -c dynx -n '__dynx_at dynx bench' -s v -l verbose -d 'Print decisions and their reasons on stderr'
complete -c dynx -n '__dynx_at dynx bench' -l color -x -a 'auto always never' -d 'When to use colour'
complete -c dynx -n '__dynx_at dynx bench' -s h -l help -d 'Show this message and exit'
