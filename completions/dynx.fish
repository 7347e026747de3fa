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
complete -c dynx -n '__dynx_at dynx' -a 'generate' -d 'Continue a text with a language model, faster than plain decoding and equal to it'
complete -c dynx -n '__dynx_at dynx' -a 'classify' -d 'Label texts or images, stopping early where the answer is clear, within a promise about how often that differs'
complete -c dynx -n '__dynx_at dynx' -a 'draw' -d 'Draw pictures from prompts, in as few steps as each picture needs, within a promise about how much that changes it'
complete -c dynx -n '__dynx_at dynx' -a 'calibrate' -d 'Measure this device and a model once, and store what was learned'
complete -c dynx -n '__dynx_at dynx' -a 'bench' -d 'Measure plain, static and dynamic execution in turns, and gate on the result'
complete -c dynx -n '__dynx_at dynx' -l version -d 'Print the version and exit'
complete -c dynx -n '__dynx_at dynx' -s h -l help -d 'Show this message and exit'

# dynx generate
complete -c dynx -n '__dynx_at dynx generate' -s m -l model -x -a 'story (__dynx_hub generate) (__dynx_folders)' -d 'A shipped model\'s name, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx generate' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'Who guesses ahead'
complete -c dynx -n '__dynx_at dynx generate' -l lookup -r -F -d 'A text file whose passages may be repeated'
complete -c dynx -n '__dynx_at dynx generate' -s n -l max-new-tokens -x -d 'Stop after this many tokens'
complete -c dynx -n '__dynx_at dynx generate' -l temperature -x -d '0 takes the likeliest token'
complete -c dynx -n '__dynx_at dynx generate' -l top-k -x -d 'Sample among the K likeliest tokens'
complete -c dynx -n '__dynx_at dynx generate' -l top-p -x -d 'Sample among the likeliest tokens that make up this probability'
complete -c dynx -n '__dynx_at dynx generate' -l repetition-penalty -x -d 'Above 1 makes repeating less likely'
complete -c dynx -n '__dynx_at dynx generate' -l seed -x -d 'Makes sampling reproducible, whatever is drafted'
complete -c dynx -n '__dynx_at dynx generate' -l stop -x -d 'End the answer before this text'
complete -c dynx -n '__dynx_at dynx generate' -l chat -d 'Put the prompt into the model\'s chat template'
complete -c dynx -n '__dynx_at dynx generate' -l system -x -d 'System message for the chat template'
complete -c dynx -n '__dynx_at dynx generate' -l lines -d 'One prompt per line of stdin, one answer per line of stdout'
complete -c dynx -n '__dynx_at dynx generate' -l batch -x -d 'With --lines, answer up to so many prompts at once'
complete -c dynx -n '__dynx_at dynx generate' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx generate' -l jsonl -d 'Print JSON lines: one for each token and each result'
complete -c dynx -n '__dynx_at dynx generate' -l stats -d 'Say on stderr what the answer cost and what was saved'
complete -c dynx -n '__dynx_at dynx generate' -l explain -d 'Shade each token by who guessed it, and say why each setting has its value'
complete -c dynx -n '__dynx_at dynx generate' -l plain -d 'Plain decoding: nothing dynamic'
complete -c dynx -n '__dynx_at dynx generate' -l verify -d 'Score the answer again on the plain model'
complete -c dynx -n '__dynx_at dynx generate' -l exact -d 'The text of --plain --exact to the token, also where bfloat16 or int8 could round a tie'
complete -c dynx -n '__dynx_at dynx generate' -l dry-run -d 'Say what would be done and why, without loading the model, and stop'
complete -c dynx -n '__dynx_at dynx generate' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Whose kernels compute the model'
complete -c dynx -n '__dynx_at dynx generate' -l quantize -x -a 'none int8 int4' -d 'Store weights in 8 or 4 bits: faster, and another model'
complete -c dynx -n '__dynx_at dynx generate' -l profile -x -a 'none (__dynx_profiles generate)' -d 'Use this stored profile (see dynx calibrate --list), or none'
complete -c dynx -n '__dynx_at dynx generate' -l require-profile -d 'Fail (exit 4) unless a profile fits'
complete -c dynx -n '__dynx_at dynx generate' -l device -x -a 'auto cpu cuda xpu mps' -d 'auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx generate' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Precision to compute in'
complete -c dynx -n '__dynx_at dynx generate' -l threads -x -d 'Processor threads'
complete -c dynx -n '__dynx_at dynx generate' -l allow-pickle -d 'Load pickled weights too'
complete -c dynx -n '__dynx_at dynx generate' -l trust-remote-code -d 'Run code that a model\'s folder brings along'
complete -c dynx -n '__dynx_at dynx generate' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx generate' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx generate' -s q -l quiet -d 'Fewer words on stderr'
complete -c dynx -n '__dynx_at dynx generate' -s v -l verbose -d 'Say what was decided and why'
complete -c dynx -n '__dynx_at dynx generate' -l color -x -a 'auto always never' -d 'Colour on the terminal'
complete -c dynx -n '__dynx_at dynx generate' -s h -l help -d 'Show this message and exit'

# dynx classify
complete -c dynx -n '__dynx_at dynx classify' -F
complete -c dynx -n '__dynx_at dynx classify' -s m -l model -x -a 'mood (__dynx_hub classify) (__dynx_folders)' -d 'A shipped model\'s name, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx classify' -s 0 -l null -d 'Inputs on stdin end with NUL, not with a line end'
complete -c dynx -n '__dynx_at dynx classify' -l tsv -d 'Read a tab-separated table, quoted as Python\'s csv module does'
complete -c dynx -n '__dynx_at dynx classify' -l column -x -d 'With --tsv: the column of the texts, by header or by number from 1'
complete -c dynx -n '__dynx_at dynx classify' -l field -x -d 'Read JSON lines'
complete -c dynx -n '__dynx_at dynx classify' -l skip-empty -d 'Leave out empty texts'
complete -c dynx -n '__dynx_at dynx classify' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx classify' -l max-disagreement -x -d 'At most this share of answers may differ from the full model\'s'
complete -c dynx -n '__dynx_at dynx classify' -l confidence -x -d 'How sure the promise is'
complete -c dynx -n '__dynx_at dynx classify' -l within -x -d 'For models that give numbers: how far one may be off and still agree'
complete -c dynx -n '__dynx_at dynx classify' -l certify -d 'Let a random sample of this very input decide how early the rest may leave'
complete -c dynx -n '__dynx_at dynx classify' -l audit -x -d 'Check this share of the answers with the full model, and end the exits if the promise is broken'
complete -c dynx -n '__dynx_at dynx classify' -l batch-size -x -d 'Inputs computed together'
complete -c dynx -n '__dynx_at dynx classify' -l max-length -x -d 'Cut texts to N tokens'
complete -c dynx -n '__dynx_at dynx classify' -l top-k -x -d 'Show the K best labels of each input'
complete -c dynx -n '__dynx_at dynx classify' -l scores -d 'Show all labels of each input'
complete -c dynx -n '__dynx_at dynx classify' -l labels -r -F -d 'A file with the true label of each input, alone or as last column'
complete -c dynx -n '__dynx_at dynx classify' -l resume -r -F -d 'Write to this file, and go on where it ends'
complete -c dynx -n '__dynx_at dynx classify' -l jsonl -d 'Print a JSON line for each input'
complete -c dynx -n '__dynx_at dynx classify' -l stats -d 'Say on stderr what the answers cost and what was saved'
complete -c dynx -n '__dynx_at dynx classify' -l explain -d 'Show where inputs left, which went deep, and why each setting has its value'
complete -c dynx -n '__dynx_at dynx classify' -l plain -d 'The full model for every input: nothing dynamic'
complete -c dynx -n '__dynx_at dynx classify' -l verify -d 'Run the full model on every input too'
complete -c dynx -n '__dynx_at dynx classify' -l dry-run -d 'Say what would be done and why, without loading the model, and stop'
complete -c dynx -n '__dynx_at dynx classify' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Whose kernels compute the model'
complete -c dynx -n '__dynx_at dynx classify' -l quantize -x -a 'none int8 int4' -d 'Store weights in 8 or 4 bits: faster, and another model'
complete -c dynx -n '__dynx_at dynx classify' -l profile -x -a 'none (__dynx_profiles classify)' -d 'Use this stored profile (see dynx calibrate --list), or none'
complete -c dynx -n '__dynx_at dynx classify' -l require-profile -d 'Fail (exit 4) unless a profile fits'
complete -c dynx -n '__dynx_at dynx classify' -l device -x -a 'auto cpu cuda xpu mps' -d 'auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx classify' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Precision to compute in'
complete -c dynx -n '__dynx_at dynx classify' -l threads -x -d 'Processor threads'
complete -c dynx -n '__dynx_at dynx classify' -l allow-pickle -d 'Load pickled weights too'
complete -c dynx -n '__dynx_at dynx classify' -l trust-remote-code -d 'Run code that a model\'s folder brings along'
complete -c dynx -n '__dynx_at dynx classify' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx classify' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx classify' -s q -l quiet -d 'Fewer words on stderr'
complete -c dynx -n '__dynx_at dynx classify' -s v -l verbose -d 'Say what was decided and why'
complete -c dynx -n '__dynx_at dynx classify' -l color -x -a 'auto always never' -d 'Colour on the terminal'
complete -c dynx -n '__dynx_at dynx classify' -s h -l help -d 'Show this message and exit'

# dynx draw
complete -c dynx -n '__dynx_at dynx draw' -s m -l model -x -a 'emoji (__dynx_hub draw) (__dynx_folders)' -d 'A shipped model\'s name, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx draw' -s o -l output -r -F -d 'A file, a folder, or a pattern of {n}, {slug} (the prompt) and {seed}; - writes the PNG to stdout'
complete -c dynx -n '__dynx_at dynx draw' -s c -l count -x -d 'Pictures of each prompt, with seeds that follow'
complete -c dynx -n '__dynx_at dynx draw' -l seed -x -d 'Makes the picture reproducible'
complete -c dynx -n '__dynx_at dynx draw' -l size -x -d 'Width and height in pixels, or one number for both'
complete -c dynx -n '__dynx_at dynx draw' -l guidance -x -d 'How much the prompt is enforced'
complete -c dynx -n '__dynx_at dynx draw' -l negative -x -d 'What the picture should not be like'
complete -c dynx -n '__dynx_at dynx draw' -l quality -x -d 'Likeness to the full run of the same seed that is kept, from 0 to 1'
complete -c dynx -n '__dynx_at dynx draw' -l steps -x -a 'auto' -d 'A fixed number of steps'
complete -c dynx -n '__dynx_at dynx draw' -l draft -d 'A cheap preview in few steps'
complete -c dynx -n '__dynx_at dynx draw' -l finish -r -F -d 'Draw a draft\'s PNG again in full quality'
complete -c dynx -n '__dynx_at dynx draw' -l info -r -F -d 'Say how a PNG was drawn, and stop'
complete -c dynx -n '__dynx_at dynx draw' -l lines -d 'One prompt per line of stdin'
complete -c dynx -n '__dynx_at dynx draw' -l no-stdin -d 'Never read stdin'
complete -c dynx -n '__dynx_at dynx draw' -l show -x -a 'auto always never' -d 'Show the picture in the terminal'
complete -c dynx -n '__dynx_at dynx draw' -l preview -d 'Show on the terminal what the picture is becoming while it is drawn'
complete -c dynx -n '__dynx_at dynx draw' -l jsonl -d 'Print JSON lines: one for each step and each picture'
complete -c dynx -n '__dynx_at dynx draw' -l stats -d 'Say on stderr what each picture cost and what was saved'
complete -c dynx -n '__dynx_at dynx draw' -l explain -d 'Show which steps ran and which were skipped, and why each setting has its value'
complete -c dynx -n '__dynx_at dynx draw' -l plain -d 'The pipeline as its author made it: nothing dynamic'
complete -c dynx -n '__dynx_at dynx draw' -l force -d 'Overwrite files that exist'
complete -c dynx -n '__dynx_at dynx draw' -l verify -d 'Draw each picture plainly too, and say how alike they are'
complete -c dynx -n '__dynx_at dynx draw' -l dry-run -d 'Say what would be done and why, without loading the model, and stop'
complete -c dynx -n '__dynx_at dynx draw' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Whose kernels compute the model'
complete -c dynx -n '__dynx_at dynx draw' -l profile -x -a 'none (__dynx_profiles draw)' -d 'Use this stored profile (see dynx calibrate --list), or none'
complete -c dynx -n '__dynx_at dynx draw' -l require-profile -d 'Fail (exit 4) unless a profile fits'
complete -c dynx -n '__dynx_at dynx draw' -l device -x -a 'auto cpu cuda xpu mps' -d 'auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx draw' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Precision to compute in'
complete -c dynx -n '__dynx_at dynx draw' -l threads -x -d 'Processor threads'
complete -c dynx -n '__dynx_at dynx draw' -l allow-pickle -d 'Load pickled weights too'
complete -c dynx -n '__dynx_at dynx draw' -l trust-remote-code -d 'Run code that a model\'s folder brings along'
complete -c dynx -n '__dynx_at dynx draw' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx draw' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx draw' -s q -l quiet -d 'Fewer words on stderr'
complete -c dynx -n '__dynx_at dynx draw' -s v -l verbose -d 'Say what was decided and why'
complete -c dynx -n '__dynx_at dynx draw' -l color -x -a 'auto always never' -d 'Colour on the terminal'
complete -c dynx -n '__dynx_at dynx draw' -s h -l help -d 'Show this message and exit'

# dynx calibrate
complete -c dynx -n '__dynx_at dynx calibrate' -s m -l model -x -a 'story emoji mood (__dynx_hub any) (__dynx_folders)' -d 'A shipped model\'s name, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx calibrate' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'Who guesses ahead'
complete -c dynx -n '__dynx_at dynx calibrate' -l data -r -F -d 'What to learn from: prompts, one per line (by default the model\'s own)'
complete -c dynx -n '__dynx_at dynx calibrate' -l tsv -d 'Read a tab-separated table, quoted as Python\'s csv module does'
complete -c dynx -n '__dynx_at dynx calibrate' -l column -x -d 'With --tsv: the column of the texts, by header or by number from 1'
complete -c dynx -n '__dynx_at dynx calibrate' -l field -x -d 'Read JSON lines'
complete -c dynx -n '__dynx_at dynx calibrate' -l max-disagreement -x -d 'At most this share of answers may differ from the full model\'s'
complete -c dynx -n '__dynx_at dynx calibrate' -l confidence -x -d 'How sure the promise is'
complete -c dynx -n '__dynx_at dynx calibrate' -l within -x -d 'For models that give numbers: how far one may be off and still agree'
complete -c dynx -n '__dynx_at dynx calibrate' -l batch-size -x -d 'Inputs computed together'
complete -c dynx -n '__dynx_at dynx calibrate' -l max-length -x -d 'Cut texts to N tokens'
complete -c dynx -n '__dynx_at dynx calibrate' -l quality -x -d 'Likeness to the full run of the same seed that is kept, from 0 to 1'
complete -c dynx -n '__dynx_at dynx calibrate' -l guidance -x -d 'How much the prompt is enforced'
complete -c dynx -n '__dynx_at dynx calibrate' -l negative -x -d 'For a pipeline that draws: the negative prompt it will be drawn with'
complete -c dynx -n '__dynx_at dynx calibrate' -l size -x -d 'Width and height in pixels, or one number for both'
complete -c dynx -n '__dynx_at dynx calibrate' -l budget -x -d 'Time to spend measuring: by default 60, and 600 for a pipeline that draws'
complete -c dynx -n '__dynx_at dynx calibrate' -l dry-run -d 'Say what would be measured, and stop'
complete -c dynx -n '__dynx_at dynx calibrate' -l check -d 'Test on fresh inputs what the stored profile promises'
complete -c dynx -n '__dynx_at dynx calibrate' -l device-info -d 'Show what this machine has and what dynx picks from it'
complete -c dynx -n '__dynx_at dynx calibrate' -l list -d 'List the stored profiles'
complete -c dynx -n '__dynx_at dynx calibrate' -l show -x -a '(__dynx_profiles any)' -d 'Print a stored profile'
complete -c dynx -n '__dynx_at dynx calibrate' -l export -x -a '(__dynx_profiles any)' -d 'Write a stored profile as one file (to --output, or stdout)'
complete -c dynx -n '__dynx_at dynx calibrate' -s o -l output -r -F -d 'Where --export writes'
complete -c dynx -n '__dynx_at dynx calibrate' -l import -r -F -d 'Store a profile that --export wrote'
complete -c dynx -n '__dynx_at dynx calibrate' -l remove -x -a '(__dynx_profiles any)' -d 'Delete a stored profile'
complete -c dynx -n '__dynx_at dynx calibrate' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Whose kernels compute the model'
complete -c dynx -n '__dynx_at dynx calibrate' -l quantize -x -a 'none int8 int4' -d 'Store weights in 8 or 4 bits: faster, and another model'
complete -c dynx -n '__dynx_at dynx calibrate' -l device -x -a 'auto cpu cuda xpu mps' -d 'auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx calibrate' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Precision to compute in'
complete -c dynx -n '__dynx_at dynx calibrate' -l threads -x -d 'Processor threads'
complete -c dynx -n '__dynx_at dynx calibrate' -l allow-pickle -d 'Load pickled weights too'
complete -c dynx -n '__dynx_at dynx calibrate' -l trust-remote-code -d 'Run code that a model\'s folder brings along'
complete -c dynx -n '__dynx_at dynx calibrate' -l offline -d 'Never contact the hub'
complete -c dynx -n '__dynx_at dynx calibrate' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx calibrate' -s q -l quiet -d 'Fewer words on stderr'
complete -c dynx -n '__dynx_at dynx calibrate' -s v -l verbose -d 'Say what was decided and why'
complete -c dynx -n '__dynx_at dynx calibrate' -l color -x -a 'auto always never' -d 'Colour on the terminal'
complete -c dynx -n '__dynx_at dynx calibrate' -s h -l help -d 'Show this message and exit'

# dynx bench
complete -c dynx -n '__dynx_at dynx bench' -a 'generate classify draw all'
complete -c dynx -n '__dynx_at dynx bench' -s m -l model -x -a 'emoji mood story (__dynx_hub any) (__dynx_folders)' -d 'A shipped model\'s name, a Hugging Face folder, or a hub id'
complete -c dynx -n '__dynx_at dynx bench' -l data -r -F -d 'What to measure on: prompts, one per line (a pipeline that draws makes its own)'
complete -c dynx -n '__dynx_at dynx bench' -l runs -x -d 'Rounds'
complete -c dynx -n '__dynx_at dynx bench' -l prompts -l inputs -x -d 'At most this many inputs: the first 4 prompts by default'
complete -c dynx -n '__dynx_at dynx bench' -l draft -x -a 'auto none self lookup story (__dynx_hub generate) (__dynx_folders)' -d 'What makes draft tokens, as in dynx generate: auto, a model, …'
complete -c dynx -n '__dynx_at dynx bench' -s n -l max-new-tokens -x -d 'Tokens per answer'
complete -c dynx -n '__dynx_at dynx bench' -l static -x -a 'none' -d 'Static draft lengths to measure, e.g. 2,4'
complete -c dynx -n '__dynx_at dynx bench' -l labels -r -F -d 'A file with the true label of each of a classifier\'s inputs, alone or as last column, to measure accuracy'
complete -c dynx -n '__dynx_at dynx bench' -l with -x -d 'Options of the model\'s own command for every arm, in one argument'
complete -c dynx -n '__dynx_at dynx bench' -l arm -x -d 'Also measure this with other options (-m, --dtype, --profile, --static K, …), or the peer transformers'
complete -c dynx -n '__dynx_at dynx bench' -l min-speedup -x -d 'Gate'
complete -c dynx -n '__dynx_at dynx bench' -l require-identical -d 'Gate'
complete -c dynx -n '__dynx_at dynx bench' -l max-disagreement -x -d 'A classifier\'s promise (0.02 by default) and, where given, a gate'
complete -c dynx -n '__dynx_at dynx bench' -l min-quality -x -d 'Gate for a pipeline that draws'
complete -c dynx -n '__dynx_at dynx bench' -l baseline -r -F -d 'Gate'
complete -c dynx -n '__dynx_at dynx bench' -l tolerance -x -d 'How much slower still passes: 5% for --baseline by default, 0% for --min-speedup'
complete -c dynx -n '__dynx_at dynx bench' -l bisect -d 'Exit with 125 where nothing can be judged: for git bisect run'
complete -c dynx -n '__dynx_at dynx bench' -l budget -x -d 'Stop after a whole round when time runs out'
complete -c dynx -n '__dynx_at dynx bench' -l export -x -a '(__dynx_files_after json: md: csv: junit: github-action-benchmark:)' -d 'Also write the result as json, md, csv, junit or github-action-benchmark'
complete -c dynx -n '__dynx_at dynx bench' -l plot -r -F -d 'Draw speed, and speed against quality, as SVG or PNG'
complete -c dynx -n '__dynx_at dynx bench' -l backend -x -a 'auto torch compiled graphs openvino ipex' -d 'Whose kernels compute the model'
complete -c dynx -n '__dynx_at dynx bench' -l quantize -x -a 'none int8 int4' -d 'Store weights in 8 or 4 bits: faster, and another model'
complete -c dynx -n '__dynx_at dynx bench' -l device -x -a 'auto cpu cuda xpu mps' -d 'auto, cpu, cuda, cuda:1, xpu or mps'
complete -c dynx -n '__dynx_at dynx bench' -l dtype -x -a 'auto float32 bfloat16 float16' -d 'Precision to compute in'
complete -c dynx -n '__dynx_at dynx bench' -l threads -x -d 'Processor threads'
complete -c dynx -n '__dynx_at dynx bench' -l json -d 'Print one JSON document instead of text'
complete -c dynx -n '__dynx_at dynx bench' -s q -l quiet -d 'Fewer words on stderr'
complete -c dynx -n '__dynx_at dynx bench' -s v -l verbose -d 'Say what was decided and why'
complete -c dynx -n '__dynx_at dynx bench' -l color -x -a 'auto always never' -d 'Colour on the terminal'
complete -c dynx -n '__dynx_at dynx bench' -s h -l help -d 'Show this message and exit'
