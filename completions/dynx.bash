# bash completion for dynx. Made from the command tree by: python -m dynx.cli.reference
# shellcheck shell=bash disable=SC2207

# What may follow a command. An option is written with all its names; = says that it takes a value, + that it repeats.
_dynx_list() {
    case $1 in
    dynx)
        commands='generate classify draw calibrate bench'
        options='--version -h,--help'
        ;;
    'dynx generate')
        commands=''
        options='-m,--model= --adapter=+ --draft= --lookup= -n,--max-new-tokens= --temperature= --top-k= --top-p=
            --repetition-penalty= --seed= --stop=+ --chat --system= --messages= --lines --field= --batch=
            --column= --no-stdin --jsonl --stats --explain --plain --verify --exact --dry-run --backend=
            --quantize= --profile= --require-profile --input=+ --output= --engine= --workers= --shard-rows=
            --timeout-row= --device= --dtype= --threads= --allow-pickle --trust-remote-code --offline --json
            -q,--quiet+ -v,--verbose+ --color= -h,--help'
        ;;
    'dynx classify')
        commands=''
        options='-m,--model= -0,--null --tsv --column= --field= --pair= --rank --group= --candidates= --hypothesis=
            --multi-label --aggregation-strategy= --per-class --skip-empty --no-stdin --max-disagreement=
            --confidence= --within= --certify --audit= --batch-size= --max-length= --top-k= --scores --labels=
            --resume= --jsonl --stats --explain --plain --verify --dry-run --backend= --quantize= --profile=
            --require-profile --input=+ --output= --engine= --workers= --shard-rows= --timeout-row= --device=
            --dtype= --threads= --allow-pickle --trust-remote-code --offline --json -q,--quiet+ -v,--verbose+
            --color= -h,--help'
        ;;
    'dynx draw')
        commands=''
        options='-o,--output= -m,--model= --lora=+ --image= --strength= --mask= --control-image= --control-scale=
            -c,--count= --seed= --size= --guidance= --negative= --quality= --steps= --draft --finish=+ --info=+
            --column= --lines --no-stdin --show= --preview --jsonl --stats --explain --plain --force --verify
            --dry-run --backend= --profile= --require-profile --input=+ --engine= --workers= --shard-rows=
            --timeout-row= --device= --dtype= --threads= --allow-pickle --trust-remote-code --offline --json
            -q,--quiet+ -v,--verbose+ --color= -h,--help'
        ;;
    'dynx calibrate')
        commands=''
        options='-m,--model= --adapter=+ --lora=+ --image= --strength= --mask= --control-image= --control-scale=
            --draft= --data= --tsv --column= --field= --pair= --rank --group= --candidates= --hypothesis=
            --multi-label --aggregation-strategy= --per-class --top-k= --chat --system= --max-disagreement=
            --confidence= --within= --batch-size= --max-length= --quality= --guidance= --negative= --size=
            --budget= --learn-drafter --anew --dry-run --check --device-info --list --show= --export=
            -o,--output= --import= --remove= --backend= --quantize= --device= --dtype= --threads= --allow-pickle
            --trust-remote-code --offline --json -q,--quiet+ -v,--verbose+ --color= -h,--help'
        ;;
    'dynx bench')
        commands=''
        options='-m,--model=+ --data= --field= --chat --system= --by= --runs= --prompts,--inputs= --adapter=+
            --lora=+ --draft= -n,--max-new-tokens= --static= --labels= --with=+ --arm=+ --min-speedup=
            --each-category --require-identical --max-disagreement= --min-quality= --baseline= --tolerance=
            --bisect --budget= --export=+ --plot= --backend= --quantize= --device= --dtype= --threads= --json
            -q,--quiet+ -v,--verbose+ --color= -h,--help'
        ;;
    esac
}

# What a value may be: of an option ("dynx COMMAND --option") or of an argument ("dynx COMMAND").
_dynx_value() {
    case $1 in
    'dynx generate -m' | \
    'dynx generate --model')
        _dynx_words story; _dynx_hub generate; _dynx_folders ;;
    'dynx generate --draft')
        _dynx_words 'auto none self lookup story'; _dynx_hub generate; _dynx_folders ;;
    'dynx generate --lookup' | \
    'dynx generate --messages')
        _dynx_files ;;
    'dynx generate --backend')
        _dynx_words 'auto torch compiled graphs openvino ipex' ;;
    'dynx generate --quantize')
        _dynx_words 'auto none int8 int4 file' ;;
    'dynx generate --profile')
        _dynx_words none; _dynx_profiles generate ;;
    'dynx generate --output')
        _dynx_folders ;;
    'dynx generate --engine')
        _dynx_words 'local ray' ;;
    'dynx generate --device')
        _dynx_words 'auto cpu cuda xpu mps' ;;
    'dynx generate --dtype')
        _dynx_words 'auto float32 bfloat16 float16' ;;
    'dynx generate --color')
        _dynx_words 'auto always never' ;;
    'dynx classify -m' | \
    'dynx classify --model')
        _dynx_words mood; _dynx_hub classify; _dynx_folders ;;
    'dynx classify --labels' | \
    'dynx classify --resume' | \
    'dynx classify')
        _dynx_files ;;
    'dynx classify --backend')
        _dynx_words 'auto torch compiled graphs openvino ipex' ;;
    'dynx classify --quantize')
        _dynx_words 'auto none int8 int4 file' ;;
    'dynx classify --profile')
        _dynx_words none; _dynx_profiles classify ;;
    'dynx classify --output')
        _dynx_folders ;;
    'dynx classify --engine')
        _dynx_words 'local ray' ;;
    'dynx classify --device')
        _dynx_words 'auto cpu cuda xpu mps' ;;
    'dynx classify --dtype')
        _dynx_words 'auto float32 bfloat16 float16' ;;
    'dynx classify --color')
        _dynx_words 'auto always never' ;;
    'dynx draw -o' | \
    'dynx draw --output' | \
    'dynx draw --image' | \
    'dynx draw --mask' | \
    'dynx draw --control-image' | \
    'dynx draw --finish' | \
    'dynx draw --info')
        _dynx_files ;;
    'dynx draw -m' | \
    'dynx draw --model')
        _dynx_words emoji; _dynx_hub draw; _dynx_folders ;;
    'dynx draw --steps')
        _dynx_words auto ;;
    'dynx draw --show' | \
    'dynx draw --color')
        _dynx_words 'auto always never' ;;
    'dynx draw --backend')
        _dynx_words 'auto torch compiled graphs openvino ipex' ;;
    'dynx draw --profile')
        _dynx_words none; _dynx_profiles draw ;;
    'dynx draw --engine')
        _dynx_words 'local ray' ;;
    'dynx draw --device')
        _dynx_words 'auto cpu cuda xpu mps' ;;
    'dynx draw --dtype')
        _dynx_words 'auto float32 bfloat16 float16' ;;
    'dynx calibrate') _dynx_options ;;
    'dynx calibrate -m' | \
    'dynx calibrate --model')
        _dynx_words 'story emoji mood'; _dynx_hub any; _dynx_folders ;;
    'dynx calibrate --image' | \
    'dynx calibrate --mask' | \
    'dynx calibrate --control-image' | \
    'dynx calibrate --data' | \
    'dynx calibrate -o' | \
    'dynx calibrate --output' | \
    'dynx calibrate --import')
        _dynx_files ;;
    'dynx calibrate --draft')
        _dynx_words 'auto none self lookup story'; _dynx_hub generate; _dynx_folders ;;
    'dynx calibrate --show' | \
    'dynx calibrate --remove')
        _dynx_profiles any ;;
    'dynx calibrate --export')
        _dynx_folders; _dynx_profiles any ;;
    'dynx calibrate --backend')
        _dynx_words 'auto torch compiled graphs openvino ipex' ;;
    'dynx calibrate --quantize')
        _dynx_words 'auto none int8 int4 file' ;;
    'dynx calibrate --device')
        _dynx_words 'auto cpu cuda xpu mps' ;;
    'dynx calibrate --dtype')
        _dynx_words 'auto float32 bfloat16 float16' ;;
    'dynx calibrate --color')
        _dynx_words 'auto always never' ;;
    'dynx bench -m' | \
    'dynx bench --model')
        _dynx_words 'emoji mood story'; _dynx_hub any; _dynx_folders ;;
    'dynx bench --data' | \
    'dynx bench --labels' | \
    'dynx bench --baseline' | \
    'dynx bench --plot')
        _dynx_files ;;
    'dynx bench --draft')
        _dynx_words 'auto none self lookup story'; _dynx_hub generate; _dynx_folders ;;
    'dynx bench --static')
        _dynx_words none ;;
    'dynx bench --export')
        _dynx_prefixes 'json: md: csv: junit: github-action-benchmark:' ;;
    'dynx bench --backend')
        _dynx_words 'auto torch compiled graphs openvino ipex' ;;
    'dynx bench --quantize')
        _dynx_words 'auto none int8 int4 file' ;;
    'dynx bench --device')
        _dynx_words 'auto cpu cuda xpu mps' ;;
    'dynx bench --dtype')
        _dynx_words 'auto float32 bfloat16 float16' ;;
    'dynx bench --color')
        _dynx_words 'auto always never' ;;
    'dynx bench')
        _dynx_words 'generate classify draw all' ;;
    *) return 1 ;;
    esac
}

_dynx_words() {
    COMPREPLY+=($(compgen -W "$1" -- "$value"))
}

# readline's own completion quotes what needs quoting; compgen stands in where it can't be asked for.
_dynx_files() {
    compopt -o default 2>/dev/null || COMPREPLY+=($(compgen -f -- "$value"))
}

_dynx_folders() {
    compopt -o filenames -o plusdirs 2>/dev/null || COMPREPLY+=($(compgen -d -- "$value"))
}

_dynx_prefixes() {
    local prefix
    for prefix in $1; do
        if [[ $value == "$prefix"* ]]; then
            value=${value#"$prefix"} lead+=$prefix
            _dynx_files
            return
        fi
    done
    compopt -o nospace 2>/dev/null
    _dynx_words "$1"
}

# Ids of stored profiles of a task.
_dynx_profiles() {
    local task=$1 folder=${DYNX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dynx} file ids=
    [[ $OSTYPE == darwin* && -z $DYNX_CACHE_DIR$XDG_CACHE_HOME ]] && folder=$HOME/Library/Caches/dynx
    [[ $task == any ]] && task='*'
    local IFS=$'\n'
    for file in $(compgen -G "$folder/profiles/$task-*-????????????.json"); do
        file=${file##*-}
        ids+=${file%.json}$'\n'
    done
    _dynx_words "$ids"
}

# Models of a task in the hub's cache, told by what their config.json says they are; what draws has a model_index.json.
_dynx_hub() {
    local folder=${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub} file ids= fits=
    case $1 in
    generate) fits='(ForCausalLM|LMHeadModel)"' ;;
    classify) fits='(ForSequenceClassification|ForImageClassification)"' ;;
    any) fits='(ForCausalLM|LMHeadModel|ForSequenceClassification|ForImageClassification)"' ;;
    esac
    local IFS=$'\n'
    for file in $(
        [[ $1 == draw || $1 == any ]] && compgen -G "$folder/models--*/snapshots/*/model_index.json"
        [[ -n $fits ]] && grep -lE -- "$fits" "$folder"/models--*/snapshots/*/config.json 2>/dev/null
    ); do
        file=${file#"$folder"/models--}
        file=${file%%/*}
        file=${file/--//}$'\n'
        [[ $'\n'$ids == *$'\n'"$file"* ]] || ids+=$file
    done
    _dynx_words "$ids"
}

# Find an option's entry in the list by one of its names.
_dynx_find() {
    for entry in $options; do
        [[ ,${entry%%[=+]*}, == *,"$1",* ]] && return
    done
    entry=
    return 1
}

_dynx_options() {
    local entry names name all=
    for entry in $options; do
        names=${entry%%[=+]*}
        for name in ${names//,/ }; do
            [[ $used == *" $name "* && $entry != *+ ]] && continue 2
        done
        all+=" ${names//,/ }"
    done
    _dynx_words "$all"
}

# The words up to the cursor, whole: bash splits them at = and : too.
_dynx_split() {
    local rest=${COMP_LINE:0:COMP_POINT} i word blank
    words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        blank=${rest%%[![:blank:]]*}
        rest=${rest#"$blank"}
        ((i == COMP_CWORD)) && word=$rest
        if [[ $i -eq 0 || -n $blank ]]; then
            words+=("$word")
        else
            words[${#words[@]} - 1]+=$word
        fi
        rest=${rest#"$word"}
    done
}

_dynx() {
    local IFS=$' \t\n' words word i command=dynx commands options entry used=' ' owner= only_arguments=
    local current value lead= kept= mark
    _dynx_split
    _dynx_list "$command"
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ -n $owner ]]; then
            owner=
        elif [[ $word == -- ]]; then
            only_arguments=1
        elif [[ $word == -?* && -z $only_arguments ]]; then
            used+="${word%%=*} "
            [[ $word != *=* ]] && _dynx_find "$word" && [[ $entry == *=* ]] && owner=$word
        elif [[ " $commands " == *" $word "* && -z $only_arguments ]]; then
            command+=" $word"
            used=' '
            _dynx_list "$command"
        fi
    done

    current=${words[${#words[@]} - 1]}
    value=${current#[\"\']}
    COMPREPLY=()
    if [[ -n $owner ]]; then
        _dynx_value "$command $owner"
    elif [[ $current == --*=* && -z $only_arguments ]]; then
        lead=${current%%=*}=
        value=${current#*=}
        _dynx_value "$command ${current%%=*}"
    elif [[ $current == -* && -z $only_arguments ]]; then
        _dynx_options
    elif [[ -n $commands ]]; then
        _dynx_words "$commands"
    else
        _dynx_value "$command"
    fi

    # readline replaces only what follows the last of its word breaks.
    for mark in = :; do
        [[ $COMP_WORDBREAKS == *$mark* && $current == [!\"\']*$mark* ]] || continue
        word=${current%"${current##*"$mark"}"}
        ((${#word} > ${#kept})) && kept=$word
    done
    for i in "${!COMPREPLY[@]}"; do
        word=$lead${COMPREPLY[i]}
        COMPREPLY[i]=${word#"$kept"}
    done
}

complete -F _dynx dynx
